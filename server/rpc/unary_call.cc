#include "server/rpc/unary_call.h"

#include <memory>
#include <utility>

namespace attention::server {

void UnaryCall::Listen(const UnaryMethod& method) {
  std::unique_ptr<UnaryCall> call(new UnaryCall(method));
  const bool is_listening = call->place_.Listen([&call = *call] {
    call.context_.AsyncNotifyWhenDone(&call.done_);
    call.method_.request_next(&call.context_, &call.request_, &call.responder_, &call.arrived_);
  });
  if (is_listening) call.release();  // gRPC's now
}

void UnaryCall::OnArrived(bool ok) {
  if (!ok) {  // the server shuts down; a call that never began is never done either
    delete this;
    return;
  }
  method_.services.calls_in_flight.KeepListening([this] { Listen(method_); });
  if (const absl::Status status = ContainExceptions([this] { return Handle(); }); !status.ok()) {
    Finish(status);
  }
  Release();
}

// An error: nobody else finishes the call.
absl::Status UnaryCall::Handle() {
  frame_.emplace(method_.services, method_.rpc, CallFrame::Kind::kUnary, context_, is_cancelled_);
  if (frame_->status().ok()) method_.handle(*this);
  return frame_->status();
}

void UnaryCall::Finish(const absl::Status& status) {
  if (frame_) frame_->Finish(status);
  responder_.FinishWithError(ToGrpcStatus(status), &finished_);
}

void UnaryCall::Finish(grpc::ByteBuffer response) {
  frame_->Finish(absl::OkStatus());
  responder_.Finish(response, grpc::Status::OK, &finished_);
}

void UnaryCall::OnDone(bool) {
  if (context_.IsCancelled()) is_cancelled_->store(true, std::memory_order_relaxed);
  Release();
}

void UnaryCall::OnFinished(bool) { Release(); }

void UnaryCall::Release() {
  if (pending_events_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

}  // namespace attention::server
