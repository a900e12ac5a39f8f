// The reactor of a unary call: owns the call's frame and ends it once.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "absl/strings/string_view.h"
#include "server/rpc/service_context.h"
#include "server/rpc/status_mapping.h"

namespace attention::server {

class UnaryCall : public grpc::ServerUnaryReactor {
 public:
  UnaryCall(const ServiceContext& services, const char* rpc,
            const grpc::CallbackServerContext& context)
      : frame_(services, rpc, context) {}

  CallFrame& frame() { return frame_; }

  // Hides grpc's Finish: the frame sees the status first. The reactor may be gone when it returns.
  void Finish(const absl::Status& status) {
    frame_.Finish(status);
    grpc::ServerUnaryReactor::Finish(ToGrpcStatus(status));
  }

  void OnCancel() override { frame_.Cancel(); }
  void OnDone() override { delete this; }

 private:
  CallFrame frame_;
};

// A call that is answered at once: `handle` returns the status.
template <typename Handle>
grpc::ServerUnaryReactor* AnswerNow(const ServiceContext& services, const char* rpc,
                                    const grpc::CallbackServerContext& context, Handle handle) {
  auto* call = new UnaryCall(services, rpc, context);
  absl::Status status = call->frame().status();
  if (status.ok()) status = handle(call->frame());
  call->Finish(status);
  return call;
}

}  // namespace attention::server
