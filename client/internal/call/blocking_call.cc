#include "client/internal/call/blocking_call.h"

#include <grpcpp/completion_queue.h>

namespace attention::client::internal {

grpc::Status CallHere(Endpoint& endpoint, grpc::ClientContext* context, const char* method,
                      const grpc::ByteBuffer& request, grpc::ByteBuffer* response) {
  grpc::CompletionQueue queue;
  grpc::Status status;
  const auto call = endpoint.stub.PrepareUnaryCall(context, method, request, &queue);
  call->StartCall();
  call->Finish(response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) continue;
  return status;
}

}  // namespace attention::client::internal
