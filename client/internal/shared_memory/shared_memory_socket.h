// The client's end of a server's shared-memory channel (attention/v1/shared_memory.proto): one
// connection, which is the lease of the regions that were made over it.
//
// Thread-safety: one caller at a time, but for Interrupt.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/v1/shared_memory.pb.h"

namespace attention::client::internal {

class SharedMemorySocket {
 public:
  // UNAVAILABLE when nobody answers at the path: the server is on another host, or in another view
  // of the file system.
  static absl::StatusOr<std::unique_ptr<SharedMemorySocket>> Connect(const std::string& path);
  ~SharedMemorySocket();
  SharedMemorySocket(const SharedMemorySocket&) = delete;
  SharedMemorySocket& operator=(const SharedMemorySocket&) = delete;

  struct Region {
    v1::CreateRegionResponse info;
    int memory_fd = -1;  // the caller's
  };
  // Asks for memory of so many bytes for the tenant, whose calls carry `token`, if that is not
  // empty. The server's refusal as its status; UNAVAILABLE when the connection has ended, or no
  // answer comes within ten seconds.
  absl::StatusOr<Region> Create(const std::string& tenant, const std::string& token,
                                std::size_t bytes);
  absl::Status Release(const std::string& region_id);

  // True if the other end is who it should be, as far as the system tells, so that it may have a
  // token: it runs as root or as this process's user, or nobody else could have put a socket at its
  // path. A server on another host may name a path that anybody can take on this one.
  bool may_have_token() const { return may_have_token_; }

  // Readable when the connection has ended: the server sends nothing unasked.
  int fd() const { return fd_; }

  // Ends a call that waits, and all later ones. The lease goes on until this is destroyed.
  void Interrupt();

 private:
  SharedMemorySocket(int fd, int interrupt_fd) : fd_(fd), interrupt_fd_(interrupt_fd) {}

  bool IsTrusted(const std::string& path) const;

  // The answer, and the descriptor that came with it, if any; the caller's, negative if none.
  absl::StatusOr<v1::SharedMemoryResponse> Call(const v1::SharedMemoryRequest& request,
                                                int* memory_fd);
  absl::Status AwaitAnswer() const;

  const int fd_;
  const int interrupt_fd_;  // an eventfd
  bool may_have_token_ = false;
};

}  // namespace attention::client::internal
