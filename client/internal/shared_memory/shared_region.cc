#include "client/internal/shared_memory/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace attention::client::internal {
namespace {

// True if the memory has so many bytes and keeps them.
absl::Status CheckMemory(int fd, std::size_t bytes) {
  struct stat file {};
  const int seals = fcntl(fd, F_GET_SEALS);
  const bool is_whole = fstat(fd, &file) == 0 && static_cast<std::size_t>(file.st_size) >= bytes;
  if (is_whole && seals >= 0 && (seals & F_SEAL_SHRINK) != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the server's memory is not what it said: expected ", bytes, " bytes that cannot shrink"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<SharedRegion>> SharedRegion::Map(
    int fd, std::size_t bytes, Lease lease, std::shared_ptr<std::atomic<std::size_t>> total_bytes) {
  absl::Status status = CheckMemory(fd, bytes);
  void* data = MAP_FAILED;
  if (status.ok()) {
    // The server has made the pages: their faults are taken now and not by the first request.
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (data == MAP_FAILED) {
      status = absl::ResourceExhaustedError(
          absl::StrCat("cannot map ", bytes, " bytes of shared memory: ", std::strerror(errno)));
    }
  }
  close(fd);
  if (!status.ok()) return status;
  return std::shared_ptr<SharedRegion>(
      new SharedRegion(static_cast<char*>(data), bytes, std::move(lease), std::move(total_bytes)));
}

SharedRegion::SharedRegion(char* data, std::size_t size, Lease lease,
                           std::shared_ptr<std::atomic<std::size_t>> total_bytes)
    : data_(data),
      size_(size),
      lease_(std::move(lease)),
      total_bytes_(std::move(total_bytes)),
      extents_(size) {
  if (total_bytes_ != nullptr) *total_bytes_ += size_;
}

SharedRegion::~SharedRegion() {
  munmap(data_, size_);
  if (total_bytes_ != nullptr) *total_bytes_ -= size_;
}

std::shared_ptr<SharedSlot> SharedRegion::Allocate(std::size_t bytes) {
  absl::MutexLock lock(&mutex_);
  const std::optional<std::size_t> offset = extents_.Allocate(bytes);
  if (!offset.has_value()) return nullptr;
  const std::shared_ptr<SharedSlot> slot(new SharedSlot(shared_from_this(), *offset, bytes));
  slots_[*offset] = slot;
  return slot;
}

std::shared_ptr<SharedSlot> SharedRegion::Find(const void* data, std::size_t bytes) const {
  const char* begin = static_cast<const char*>(data);
  if (begin < data_ || begin >= data_ + size_) return nullptr;
  const auto offset = static_cast<std::size_t>(begin - data_);
  // Outlives the lock: letting go of the last reference takes it.
  std::shared_ptr<SharedSlot> slot;
  absl::MutexLock lock(&mutex_);
  const auto after = slots_.upper_bound(offset);
  if (after == slots_.begin()) return nullptr;
  slot = std::prev(after)->second.lock();
  if (slot == nullptr) return nullptr;
  const std::size_t within = offset - slot->offset();
  const bool is_inside = within <= slot->size() && bytes <= slot->size() - within;
  return is_inside ? slot : nullptr;
}

std::size_t SharedRegion::used_bytes() const {
  absl::MutexLock lock(&mutex_);
  return extents_.used_bytes();
}

bool SharedRegion::is_idle() const {
  absl::MutexLock lock(&mutex_);
  return slots_.empty();
}

void SharedRegion::Return(std::size_t offset, std::size_t bytes, bool is_abandoned) {
  absl::MutexLock lock(&mutex_);
  slots_.erase(offset);
  if (!is_abandoned) extents_.Free(offset, bytes);
}

}  // namespace attention::client::internal
