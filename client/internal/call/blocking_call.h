// A unary call on the calling thread.
#ifndef ATTENTION_CLIENT_INTERNAL_CALL_BLOCKING_CALL_H_
#define ATTENTION_CLIENT_INTERNAL_CALL_BLOCKING_CALL_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/status.h>

#include "client/internal/targets/targets.h"

namespace attention::client::internal {

// Polls for its one call on the calling thread, which therefore is the one that gRPC wakes.
grpc::Status CallHere(Endpoint& endpoint, grpc::ClientContext* context, const char* method,
                      const grpc::ByteBuffer& request, grpc::ByteBuffer* response);

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_CALL_BLOCKING_CALL_H_
