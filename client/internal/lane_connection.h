// The client's end of a server's shared-memory lane (attention/v1/shared_memory.proto): one
// connection, which is the lease of the regions that were registered over it.
//
// Thread-safety: one caller at a time, but for Interrupt.
#ifndef ATTENTION_CLIENT_INTERNAL_LANE_CONNECTION_H_
#define ATTENTION_CLIENT_INTERNAL_LANE_CONNECTION_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/v1/shared_memory.pb.h"

namespace attention::client::internal {

class LaneConnection {
 public:
  // UNAVAILABLE when nobody answers at the path: the server is on another host, or in another view
  // of the file system.
  static absl::StatusOr<std::unique_ptr<LaneConnection>> Connect(const std::string& path);
  ~LaneConnection();
  LaneConnection(const LaneConnection&) = delete;
  LaneConnection& operator=(const LaneConnection&) = delete;

  // Offers the memory behind the descriptor. The server's refusal as its status; UNAVAILABLE when
  // the connection has ended, or no answer comes within a second.
  absl::StatusOr<v1::RegisterRegionResponse> Register(const std::string& tenant, int memory_fd);
  absl::Status Release(const std::string& region_id);

  // Readable when the connection has ended: the server sends nothing unasked.
  int fd() const { return fd_; }

  // Ends a call that waits, and all later ones.
  void Interrupt();

 private:
  explicit LaneConnection(int fd) : fd_(fd) {}

  absl::StatusOr<v1::LaneResponse> Call(const v1::LaneRequest& request, const int* memory_fd);

  const int fd_;
};

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_LANE_CONNECTION_H_
