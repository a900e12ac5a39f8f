#include "server/rpc/unary_call.h"

#include <memory>
#include <utility>

#include "server/base/status_macros.h"

namespace attention::server {

void UnaryCall::Listen(const UnaryMethod& method) {
  std::unique_ptr<UnaryCall> call(new UnaryCall(method));
  const bool is_listening = call->place_.Listen([&call = *call] {
    call.context_.AsyncNotifyWhenDone(&call.done_);
    call.method_.request_next(&call.context_, &call.channel_, &call.arrived_);
  });
  if (is_listening) call.release();  // gRPC's now
}

void UnaryCall::OnArrived(bool ok) {
  if (!ok) {  // the server shuts down; a call that never began is never done either
    delete this;
    return;
  }
  method_.services.calls_in_flight.KeepListening([this] { Listen(method_); });
  if (const absl::Status status = ContainExceptions([this] { return Begin(); }); !status.ok()) {
    Finish(status);
  }
  Release();
}

// Refuses before the message comes what can be refused by its headers. An error: nobody else
// finishes the call.
absl::Status UnaryCall::Begin() {
  const ServiceContext& services = method_.services;
  frame_.emplace(services, method_.rpc, CallFrame::Kind::kUnary, context_, is_cancelled_);
  ATTENTION_RETURN_IF_ERROR(frame_->status());
  waits_since_ = services.clock.Now();
  receiving_ =
      services.receiving.Begin(frame_->peer(), ReceivingLedger::Kind::kUnary, this, waits_since_);
  pending_events_.fetch_add(1, std::memory_order_relaxed);
  channel_.Read(&request_, &received_);
  return absl::OkStatus();
}

void UnaryCall::OnReceived(bool ok) {
  if (method_.services.receiving.Leave(receiving_, ok ? request_.Length() : 0)) {
    const absl::Status status =
        ok ? ContainExceptions([this] { return Handle(); })
           : absl::CancelledError(
                 "the client has gone before its message came, or sent none or one that is larger "
                 "than max-message-bytes");
    if (!status.ok()) Finish(status);
  }
  Release();
}

absl::Status UnaryCall::Handle() {
  method_.handle(*this);
  return absl::OkStatus();
}

void UnaryCall::Finish(const absl::Status& status) {
  if (frame_) frame_->Finish(status);
  channel_.Finish(ToGrpcStatus(status), &finished_);
}

void UnaryCall::Finish(grpc::ByteBuffer response) {
  frame_->Finish(absl::OkStatus());
  channel_.WriteAndFinish(response, grpc::WriteOptions(), grpc::Status::OK, &finished_);
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
