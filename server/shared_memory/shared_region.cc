#include "server/shared_memory/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace attention::server {
namespace {

// Rounded up to whole pages.
std::int64_t Pages(std::int64_t bytes) {
  const std::int64_t page = sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}

absl::Status SystemError(const char* what, std::int64_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("cannot ", what, " ", bytes, " bytes of shared memory: ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedRegion>> SharedRegion::Create(std::int64_t bytes) {
  const std::int64_t size = Pages(bytes);
  const int fd = memfd_create("attention-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return SystemError("make", size);
  void* data = MAP_FAILED;
  if (ftruncate(fd, size) == 0 &&
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) {
    data = mmap(nullptr, static_cast<std::size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (data == MAP_FAILED) {
    absl::Status status = SystemError("map", size);
    close(fd);
    return status;
  }
  return std::unique_ptr<SharedRegion>(new SharedRegion(fd, static_cast<char*>(data), size));
}

SharedRegion::~SharedRegion() {
  if (!keeps_pages()) Depopulate(size_);
  munmap(data_, static_cast<std::size_t>(size_));
  if (fd_ >= 0) close(fd_);
}

absl::Status SharedRegion::Populate(std::int64_t bytes) {
  const std::int64_t count = std::min(Pages(bytes), size_ - populated_);
  // Reserved first: memory that is missing when it is touched would end the process.
  if (fallocate(fd_, 0, populated_, count) != 0) return SystemError("reserve", count);
  char* const begin = data_ + populated_;
  // Page tables too, so that no kernel takes the faults.
  if (madvise(begin, static_cast<std::size_t>(count), MADV_POPULATE_WRITE) != 0) {
    if (errno != EINVAL) return SystemError("populate", count);
    // A system that does not know how: by hand.
    for (std::int64_t at = 0; at < count; at += kMinBytes) {
      *static_cast<volatile char*>(begin + at) = 0;
    }
  }
  populated_ += count;
  return absl::OkStatus();
}

int SharedRegion::TakeFd() { return std::exchange(fd_, -1); }

bool SharedRegion::Depopulate(std::int64_t bytes) {
  const std::int64_t count = std::min(Pages(bytes), populated_);
  populated_ -= count;
  // The pages are taken from the file, not from this mapping alone.
  if (count > 0) madvise(data_ + populated_, static_cast<std::size_t>(count), MADV_REMOVE);
  return populated_ > 0;
}

}  // namespace attention::server
