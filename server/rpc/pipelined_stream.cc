#include "server/rpc/pipelined_stream.h"

#include "absl/strings/string_view.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/rpc/status_mapping.h"

namespace attention::server {

void PipelinedStream::Listen(const StreamMethod& method) {
  const std::shared_ptr<PipelinedStream> stream = method.make(method);
  {
    MutexLock lock(&stream->mutex_);
    stream->self_ = stream;
  }
  const bool is_listening = stream->place_.Listen([&] {
    stream->context_.AsyncNotifyWhenDone(&stream->done_);
    method.request_next(&stream->context_, &stream->channel_, &stream->arrived_);
  });
  if (is_listening) return;
  MutexLock lock(&stream->mutex_);
  stream->self_.reset();
}

void PipelinedStream::OnArrived(bool ok) {
  if (!ok) {  // the server shuts down; a stream that never began is never done either
    std::shared_ptr<PipelinedStream> last_share;  // outlives the lock
    MutexLock lock(&mutex_);
    last_share = std::move(self_);
    return;
  }
  method_.services.calls_in_flight.KeepListening([this] { Listen(method_); });
  const absl::Status status = ContainExceptions([this] { return Begin(); });
  {
    MutexLock lock(&mutex_);
    has_arrived_ = true;
    if (status.ok()) {
      ReadNext();
    } else {
      EndReads(status);
    }
  }
  EventHandled();
}

absl::Status PipelinedStream::Begin() {
  frame_.emplace(method_.services, method_.rpc, CallFrame::Kind::kStream, context_, is_cancelled_);
  ATTENTION_RETURN_IF_ERROR(frame_->status());
  if (!method_.registry.Add(shared_from_this())) BeginDrain();
  const ServiceContext& services = method_.services;
  receiving_ = services.receiving.Begin(frame_->peer(), ReceivingLedger::Kind::kStream, this,
                                        services.clock.Now());
  return absl::OkStatus();
}

absl::Time PipelinedStream::WaitsSince() const {
  MutexLock lock(&mutex_);
  return waits_since_;
}

void PipelinedStream::EndReceiving(const absl::Status& status) {
  MutexLock lock(&mutex_);
  EndReads(status);
  // A stream that waits for answers, or for their reader, would keep the message's beginning.
  if (!is_finished_) context_.TryCancel();
}

void PipelinedStream::BeginDrain() {
  MutexLock lock(&mutex_);
  if (final_status_.ok()) {
    final_status_ = ReasonedError(absl::StatusCode::kUnavailable, ErrorReason::kDraining,
                                  "the server is shutting down");
  }
  is_draining_ = true;
  FinishIfDone();
}

void PipelinedStream::OnReadDone(bool ok) {
  grpc::ByteBuffer request;
  bool is_taken = false;  // not of a stream that has ended meanwhile
  if (ok) {
    const ServiceContext& services = method_.services;
    services.receiving.Came(*receiving_, incoming_.Length(), services.clock.Now());
  }
  {
    MutexLock lock(&mutex_);
    waits_since_ = absl::InfiniteFuture();
    is_taken = ok && !reads_ended_ && !is_finished_;
    if (is_taken) {
      request.Swap(&incoming_);
      ++unanswered_;
      held_bytes_ += request.Length();
    } else if (!ok) {
      EndReads(absl::OkStatus());
    }
  }
  if (is_taken) {
    const std::size_t request_bytes = request.Length();
    const absl::Status status = ContainExceptions([&] { return OnRequest(request); });
    request.Clear();
    MutexLock lock(&mutex_);
    if (status.ok()) {
      ReadOn();
    } else {
      RequestAnswered(request_bytes);
      EndReads(status);
    }
  }
  EventHandled();
}

void PipelinedStream::OnWriteDone(bool ok) {
  std::function<void()> on_written;
  std::size_t request_bytes = 0;
  {
    MutexLock lock(&mutex_);
    Answer written = TakeFront();
    request_bytes = written.request_bytes;
    is_writing_ = false;
    if (!ok) is_broken_ = true;
    if (ok && written.on_written) {
      on_written = std::move(written.on_written);
    } else if (written.is_last || written.on_written) {
      RequestAnswered(written.request_bytes);
    }
    WriteNext();
    ResumeReads();
    if (!on_written) FinishIfDone();
  }
  if (on_written) {
    const absl::Status status = ContainExceptions([&] {
      on_written();
      return absl::OkStatus();
    });
    if (!status.ok()) BreakOff(status, request_bytes);
  }
  EventHandled();
}

void PipelinedStream::OnDone(bool) {
  if (context_.IsCancelled()) {
    is_cancelled_->store(true, std::memory_order_relaxed);
    MutexLock lock(&mutex_);
    is_broken_ = true;
    WriteNext();
    ResumeReads();
    if (has_arrived_) FinishIfDone();
  }
  EventHandled();
}

void PipelinedStream::OnFinished(bool) { EventHandled(); }

void PipelinedStream::EventHandled() {
  std::shared_ptr<PipelinedStream> last_share;
  {
    MutexLock lock(&mutex_);
    if (--pending_events_ > 0 || !is_finished_) return;
    last_share = std::move(self_);
  }
  if (receiving_) method_.services.receiving.Leave(*receiving_, 0);
}

void PipelinedStream::Send(Answer answer) {
  const std::size_t request_bytes = answer.request_bytes;
  const absl::Status status = ContainExceptions([&] {
    MutexLock lock(&mutex_);
    const std::size_t response_bytes = answer.response.Length();
    outgoing_.push_back(std::move(answer));
    held_bytes_ += response_bytes;
    return absl::OkStatus();
  });
  if (!status.ok()) return BreakOff(status, request_bytes);
  MutexLock lock(&mutex_);
  WriteNext();
  ResumeReads();
  FinishIfDone();
}

void PipelinedStream::BreakOff(const absl::Status& status, std::size_t request_bytes) {
  MutexLock lock(&mutex_);
  RequestAnswered(request_bytes);
  EndReads(status);
}

void PipelinedStream::ReadNext() {
  if (is_finished_ || reads_ended_) return;
  ++pending_events_;
  waits_since_ = method_.services.clock.Now();
  channel_.Read(&incoming_, &read_done_);
}

void PipelinedStream::EndReads(const absl::Status& status) {
  reads_ended_ = true;
  final_status_.Update(status);
  FinishIfDone();
}

// A request of any size is read when there is no other.
bool PipelinedStream::MayReadAhead() const {
  const ServiceLimits& limits = services().limits;
  return unanswered_ == 0 || (unanswered_ < limits.max_stream_requests &&
                              held_bytes_ < static_cast<std::size_t>(limits.max_stream_bytes));
}

void PipelinedStream::ReadOn() {
  is_read_paused_ = true;
  ResumeReads();
}

// A broken stream has nothing to read, and no room may ever come: what it has in the scheduler is
// dropped without a write.
void PipelinedStream::ResumeReads() {
  if (!is_read_paused_ || !(is_broken_ || MayReadAhead())) return;
  is_read_paused_ = false;
  if (is_broken_) {
    EndReads(absl::OkStatus());
  } else {
    ReadNext();
  }
}

PipelinedStream::Answer PipelinedStream::TakeFront() {
  Answer answer = std::move(outgoing_.front());
  outgoing_.pop_front();
  held_bytes_ -= answer.response.Length();
  return answer;
}

void PipelinedStream::RequestAnswered(std::size_t request_bytes) {
  --unanswered_;
  held_bytes_ -= request_bytes;
}

void PipelinedStream::WriteNext() {
  if (is_writing_) return;
  // Nobody reads any more: what is queued counts as answered.
  while (is_broken_ && !outgoing_.empty()) {
    const Answer dropped = TakeFront();
    if (dropped.is_last || dropped.on_written) RequestAnswered(dropped.request_bytes);
  }
  if (outgoing_.empty()) return;
  is_writing_ = true;
  ++pending_events_;
  channel_.Write(outgoing_.front().response, &write_done_);
}

void PipelinedStream::FinishIfDone() {
  if (is_finished_ || unanswered_ > 0 || is_writing_ || !outgoing_.empty()) return;
  if (!reads_ended_ && !is_draining_) return;
  is_finished_ = true;
  absl::Status status = final_status_;
  if (is_broken_ && status.ok()) status = absl::CancelledError("the client has gone");
  if (frame_) frame_->Finish(status);
  ++pending_events_;
  channel_.Finish(ToGrpcStatus(status), &finished_);
}

}  // namespace attention::server
