#include "server/rpc/pipelined_stream.h"

#include "absl/strings/string_view.h"
#include "server/base/error_reason.h"
#include "server/rpc/status_mapping.h"

namespace attention::server {

void PipelinedStream::Listen(const StreamMethod& method) {
  const std::shared_ptr<PipelinedStream> stream = method.make(method);
  {
    MutexLock lock(&stream->mutex_);
    stream->self_ = stream;
  }
  stream->context_.AsyncNotifyWhenDone(&stream->done_);
  method.request_next(&stream->context_, &stream->channel_, &stream->arrived_);
}

void PipelinedStream::OnArrived(bool ok) {
  if (!ok) {  // the server shuts down; a stream that never began is never done either
    std::shared_ptr<PipelinedStream> last_share;  // outlives the lock
    MutexLock lock(&mutex_);
    last_share = std::move(self_);
    return;
  }
  Listen(method_);
  frame_.emplace(method_.services, method_.rpc, context_, is_cancelled_);
  const bool is_registered = method_.registry.Add(shared_from_this());
  {
    MutexLock lock(&mutex_);
    has_arrived_ = true;
    if (!frame_->status().ok()) {
      EndReads(frame_->status());
    } else {
      ReadNext();
    }
  }
  if (!is_registered) BeginDrain();
  EventHandled();
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
  {
    MutexLock lock(&mutex_);
    if (ok) {
      request.Swap(&incoming_);
      ++unanswered_;
    } else {
      EndReads(absl::OkStatus());
    }
  }
  if (ok) {
    const absl::Status status = OnRequest(request);
    request.Clear();
    MutexLock lock(&mutex_);
    if (!status.ok()) {
      --unanswered_;
      EndReads(status);
    } else if (unanswered_ < services().limits.max_stream_requests) {
      ReadNext();
    } else {
      is_read_paused_ = true;
    }
  }
  EventHandled();
}

void PipelinedStream::OnWriteDone(bool ok) {
  std::function<void()> on_written;
  {
    MutexLock lock(&mutex_);
    Outgoing written = std::move(outgoing_.front());
    outgoing_.pop_front();
    is_writing_ = false;
    if (!ok) is_broken_ = true;
    if (ok && written.on_written) {
      on_written = std::move(written.on_written);
    } else if (written.is_last || written.on_written) {
      Answered();
    }
    WriteNext();
    if (!on_written) FinishIfDone();
  }
  if (on_written) on_written();
  EventHandled();
}

void PipelinedStream::OnDone(bool) {
  if (context_.IsCancelled()) {
    is_cancelled_->store(true, std::memory_order_relaxed);
    MutexLock lock(&mutex_);
    is_broken_ = true;
    WriteNext();
    if (has_arrived_) FinishIfDone();
  }
  EventHandled();
}

void PipelinedStream::OnFinished(bool) { EventHandled(); }

void PipelinedStream::EventHandled() {
  std::shared_ptr<PipelinedStream> last_share;  // outlives the lock
  MutexLock lock(&mutex_);
  if (--pending_events_ == 0 && is_finished_) last_share = std::move(self_);
}

void PipelinedStream::Send(grpc::ByteBuffer response, bool is_last,
                           std::function<void()> on_written) {
  MutexLock lock(&mutex_);
  outgoing_.push_back({std::move(response), is_last, std::move(on_written)});
  WriteNext();
  FinishIfDone();
}

void PipelinedStream::ReadNext() {
  if (is_finished_ || reads_ended_) return;
  ++pending_events_;
  channel_.Read(&incoming_, &read_done_);
}

void PipelinedStream::EndReads(const absl::Status& status) {
  reads_ended_ = true;
  final_status_.Update(status);
  FinishIfDone();
}

void PipelinedStream::Answered() {
  --unanswered_;
  if (!is_read_paused_) return;
  is_read_paused_ = false;
  ReadNext();
}

void PipelinedStream::WriteNext() {
  if (is_writing_) return;
  // Nobody reads any more: what is queued counts as answered.
  while (is_broken_ && !outgoing_.empty()) {
    const Outgoing dropped = std::move(outgoing_.front());
    outgoing_.pop_front();
    if (dropped.is_last || dropped.on_written) Answered();
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
  frame_->Finish(status);
  ++pending_events_;
  channel_.Finish(ToGrpcStatus(status), &finished_);
}

}  // namespace attention::server
