#include "server/rpc/unary_call.h"

#include <utility>

namespace attention::server {

UnaryCall::UnaryCall(const UnaryMethod& method) : method_(method) {
  context_.AsyncNotifyWhenDone(&done_);
  method_.request_next(&context_, &request_, &responder_, &arrived_);
}

void UnaryCall::OnArrived(bool ok) {
  if (!ok) {  // the server shuts down; a call that never began is never done either
    delete this;
    return;
  }
  Listen(method_);
  frame_.emplace(method_.services, method_.rpc, context_, is_cancelled_);
  if (frame_->status().ok()) {
    method_.handle(*this);
  } else {
    Finish(frame_->status());
  }
  Release();
}

void UnaryCall::Finish(const absl::Status& status) {
  frame_->Finish(status);
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
