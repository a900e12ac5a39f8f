#include "client/internal/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace attention::client::internal {
namespace {

absl::Status SystemError(size_t bytes, const char* what) {
  return absl::ResourceExhaustedError(
      absl::StrCat("cannot ", what, " ", bytes, " bytes of shared memory: ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::shared_ptr<SharedRegion>> SharedRegion::Create(
    size_t bytes, std::shared_ptr<std::atomic<size_t>> total_bytes) {
  const int fd = memfd_create("attention-client", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return SystemError(bytes, "make");
  // Reserved now: memory that is missing when it is touched would end the process.
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 ||
      fallocate(fd, 0, 0, static_cast<off_t>(bytes)) != 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
    const absl::Status status = SystemError(bytes, "reserve");
    close(fd);
    return status;
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (data == MAP_FAILED) {
    const absl::Status status = SystemError(bytes, "map");
    close(fd);
    return status;
  }
  return std::shared_ptr<SharedRegion>(
      new SharedRegion(fd, static_cast<char*>(data), bytes, std::move(total_bytes)));
}

SharedRegion::SharedRegion(int fd, char* data, size_t size,
                           std::shared_ptr<std::atomic<size_t>> total_bytes)
    : fd_(fd), data_(data), size_(size), total_bytes_(std::move(total_bytes)), extents_(size) {
  if (total_bytes_ != nullptr) *total_bytes_ += size_;
}

SharedRegion::~SharedRegion() {
  munmap(data_, size_);
  close(fd_);
  if (total_bytes_ != nullptr) *total_bytes_ -= size_;
}

std::shared_ptr<SharedSlot> SharedRegion::Allocate(size_t bytes) {
  absl::MutexLock lock(&mutex_);
  const std::optional<size_t> offset = extents_.Allocate(bytes);
  if (!offset.has_value()) return nullptr;
  const std::shared_ptr<SharedSlot> slot(new SharedSlot(shared_from_this(), *offset, bytes));
  slots_[*offset] = slot;
  return slot;
}

std::shared_ptr<SharedSlot> SharedRegion::Find(const void* data, size_t bytes) const {
  const char* begin = static_cast<const char*>(data);
  if (begin < data_ || begin >= data_ + size_) return nullptr;
  const auto offset = static_cast<size_t>(begin - data_);
  // Outlives the lock: letting go of the last reference takes it.
  std::shared_ptr<SharedSlot> slot;
  absl::MutexLock lock(&mutex_);
  const auto after = slots_.upper_bound(offset);
  if (after == slots_.begin()) return nullptr;
  slot = std::prev(after)->second.lock();
  if (slot == nullptr) return nullptr;
  const size_t within = offset - slot->offset();
  const bool is_inside = within <= slot->size() && bytes <= slot->size() - within;
  return is_inside ? slot : nullptr;
}

size_t SharedRegion::used_bytes() const {
  absl::MutexLock lock(&mutex_);
  return extents_.used_bytes();
}

void SharedRegion::Return(size_t offset, size_t bytes, bool is_abandoned) {
  absl::MutexLock lock(&mutex_);
  slots_.erase(offset);
  if (!is_abandoned) extents_.Free(offset, bytes);
}

}  // namespace attention::client::internal
