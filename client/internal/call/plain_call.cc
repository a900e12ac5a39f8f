#include "client/internal/call/plain_call.h"

#include <grpcpp/completion_queue.h>

#include <memory>
#include <utility>

#include "client/internal/call/call_context.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {
namespace {

// The objects that gRPC uses until the call has ended.
struct PendingCall {
  explicit PendingCall(const CallSettings& settings) : context(settings) {}

  CallContext context;
  grpc::ByteBuffer request;
  grpc::ByteBuffer response;
};

}  // namespace

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

void CallOnce(Endpoint& endpoint, const CallSettings& settings, const char* method,
              grpc::ByteBuffer request, bool may_block, PlainCallback done) {
  if (may_block) {
    CallContext context(settings);
    if (!context.status().ok()) return done(context.status(), {});
    grpc::ByteBuffer response;
    const grpc::Status status = CallHere(endpoint, context.grpc(), method, request, &response);
    return done(FromGrpcStatus(status), std::move(response));
  }
  KeepCallbackThreads();
  auto call = std::make_shared<PendingCall>(settings);
  if (!call->context.status().ok()) return done(call->context.status(), {});
  call->request = std::move(request);
  endpoint.stub.UnaryCall(call->context.grpc(), method, {}, &call->request, &call->response,
                          [call, done = std::move(done)](const grpc::Status& status) {
                            done(FromGrpcStatus(status), std::move(call->response));
                          });
}

}  // namespace attention::client::internal
