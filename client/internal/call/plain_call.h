// One attempt of a unary call: bytes to one endpoint, and its answer. Knows no retries.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include <functional>

#include "absl/status/status.h"
#include "client/internal/call/call_settings.h"
#include "client/internal/targets/targets.h"

namespace attention::client::internal {

// Polls for its one call on the calling thread, which therefore is the one that gRPC wakes.
grpc::Status CallHere(Endpoint& endpoint, grpc::ClientContext* context, const char* method,
                      const grpc::ByteBuffer& request, grpc::ByteBuffer* response);

// The outcome of an attempt, and the answer if that is OK.
using PlainCallback = std::function<void(const absl::Status&, grpc::ByteBuffer)>;

// Calls `done` once: before this returns if it `may_block`, else on one of gRPC's threads. The
// endpoint must live until then.
void CallOnce(Endpoint& endpoint, const CallSettings& settings, const char* method,
              grpc::ByteBuffer request, bool may_block, PlainCallback done);

}  // namespace attention::client::internal
