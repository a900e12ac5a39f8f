// A client's memory, mapped here: tensors lie in it and results are written to it without a copy.
//
// The memory is the client's to change at any time, while a kernel reads it too. That is safe for
// everybody else: nothing in it is ever an address, a length or a count (those travel by gRPC and
// are checked), and kernels do the same loads and stores whatever the values are. A client that
// scribbles while its request runs spoils that request's result. The file cannot shrink while it is
// mapped, which would kill the server with SIGBUS: it must be sealed against it.
//
// Thread-safety: immutable once made.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace attention::server {

class SharedRegion {
 public:
  // Maps the whole file. Takes `fd`, whatever comes of it. INVALID_ARGUMENT when it is not a file
  // of at least one page sealed with F_SEAL_SHRINK (memfd_create with MFD_ALLOW_SEALING), or larger
  // than max_bytes; RESOURCE_EXHAUSTED when it cannot be mapped.
  static absl::StatusOr<std::shared_ptr<const SharedRegion>> Map(int fd, std::int64_t max_bytes);
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  char* data() const { return data_; }
  std::int64_t size() const { return size_; }

  // Whether [offset, offset + bytes) lies within.
  bool Contains(std::int64_t offset, std::int64_t bytes) const {
    return offset >= 0 && bytes >= 0 && bytes <= size_ && offset <= size_ - bytes;
  }

 private:
  SharedRegion(char* data, std::int64_t size) : data_(data), size_(size) {}

  char* const data_;
  const std::int64_t size_;
};

}  // namespace attention::server
