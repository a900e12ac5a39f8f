// A bidirectional stream whose caller waits for each message: for calls that move files.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/internal/call/call_settings.h"
#include "client/internal/call/transport.h"

namespace attention::client::internal {

// Thread-compatible. Not to be used on gRPC's own threads.
class BlockingStream {
 public:
  // `method` is as ATTENTION_CLIENT_METHOD has it. Not OK: there is no token for the stream.
  static absl::StatusOr<std::unique_ptr<BlockingStream>> Open(
      const std::shared_ptr<Transport>& transport, std::size_t target, const CallSettings& settings,
      const char* method);
  // Cancels what is under way, and waits for the end of the stream.
  ~BlockingStream();
  BlockingStream(const BlockingStream&) = delete;
  BlockingStream& operator=(const BlockingStream&) = delete;

  // Waits until the message before has left. Not OK: the stream has ended; its status.
  absl::Status Write(grpc::ByteBuffer message);
  // The next message. Not OK: the stream has ended; its status, or INTERNAL if that is OK.
  absl::StatusOr<grpc::ByteBuffer> Read();

 private:
  class Reactor;

  explicit BlockingStream(std::unique_ptr<Reactor> reactor);

  const std::unique_ptr<Reactor> reactor_;
};

}  // namespace attention::client::internal
