#include "client/internal/targets/callback_threads.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <memory>

namespace attention::client::internal {
namespace {

// A channel that lives for ever and connects to nothing. It takes its share of the threads with its
// first call, which is cancelled before it starts.
const std::shared_ptr<grpc::Channel>* MakeKeeper() {
  const auto* keeper = new std::shared_ptr<grpc::Channel>(
      grpc::CreateChannel("ipv4:127.0.0.1:0", grpc::InsecureChannelCredentials()));
  struct Call {
    grpc::ClientContext context;
    grpc::ByteBuffer request;
    grpc::ByteBuffer response;
  };
  auto call = std::make_shared<Call>();
  call->context.TryCancel();
  const grpc::Slice nothing;
  call->request = grpc::ByteBuffer(&nothing, 1);
  grpc::GenericStub(*keeper).UnaryCall(&call->context, "/none", {}, &call->request, &call->response,
                                       [call](const grpc::Status&) {});
  return keeper;
}

}  // namespace

void KeepCallbackThreads() {
  // Emitted though nothing reads it, so that leak checkers see that the channel is still held.
  [[gnu::used]] static const auto* const keeper = MakeKeeper();
}

}  // namespace attention::client::internal
