#include "server/shared_memory/shared_region.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

constexpr std::int64_t kMinBytes = 4096;

// Closes a descriptor at the end of a scope.
class OwnedFd {
 public:
  explicit OwnedFd(int fd) : fd_(fd) {}
  ~OwnedFd() { close(fd_); }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;

 private:
  const int fd_;
};

absl::StatusOr<std::int64_t> CheckFile(int fd, std::int64_t max_bytes) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) {
    return absl::InvalidArgumentError(
        "the descriptor has no seals, expected one of memfd_create with MFD_ALLOW_SEALING");
  }
  if ((seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError("the memory may shrink, expected the seal F_SEAL_SHRINK");
  }
  // Pages of other file systems may be missing when they are touched, which is SIGBUS as well.
  struct statfs system;
  if (fstatfs(fd, &system) != 0 || system.f_type != TMPFS_MAGIC) {
    return absl::InvalidArgumentError(
        "the memory is of huge pages or of a file system, expected memfd_create without "
        "MFD_HUGETLB");
  }
  struct stat file;
  if (fstat(fd, &file) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the descriptor has no size: ", std::strerror(errno)));
  }
  if (file.st_size < kMinBytes || file.st_size > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the memory has ", file.st_size, " bytes, expected ", kMinBytes, " to ", max_bytes));
  }
  return file.st_size;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const SharedRegion>> SharedRegion::Map(int fd,
                                                                      std::int64_t max_bytes) {
  const OwnedFd owned(fd);
  const absl::StatusOr<std::int64_t> size = CheckFile(fd, max_bytes);
  if (!size.ok()) return size.status();
  // Faults are taken now, not by the first kernel that reads.
  void* data = mmap(nullptr, static_cast<std::size_t>(*size), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_POPULATE, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", *size, " bytes: ", std::strerror(errno)));
  }
  return std::shared_ptr<const SharedRegion>(new SharedRegion(static_cast<char*>(data), *size));
}

SharedRegion::~SharedRegion() { munmap(data_, static_cast<std::size_t>(size_)); }

}  // namespace attention::server
