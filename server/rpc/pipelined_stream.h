// The reactor of a bidirectional stream that answers many requests, each in its own time.
//
// It reads ahead up to a bound of unanswered requests, so a slow reader costs bounded memory and
// slows only itself: answers wait in the queue of writes, and a request counts as unanswered until
// its last answer is written. The stream ends with OK when the client has half-closed it and all is
// answered; draining ends it with UNAVAILABLE once nothing is in flight.
//
// Thread-safety: all methods. A subclass's OnRequest is called for one request at a time, in the
// order read. The reactor is shared: gRPC holds it until the call is over, and whoever will still
// Send holds it too, so that an answer computed on another thread never meets a reactor that is
// gone.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "server/base/error_reason.h"
#include "server/base/mutex.h"
#include "server/rpc/service_context.h"
#include "server/rpc/status_mapping.h"
#include "server/rpc/stream_registry.h"

namespace attention::server {

template <typename Request, typename Response>
class PipelinedStream : public grpc::ServerBidiReactor<Request, Response>,
                        public DrainableStream,
                        public std::enable_shared_from_this<PipelinedStream<Request, Response>> {
 public:
  PipelinedStream(const ServiceContext& services, const char* rpc,
                  const grpc::CallbackServerContext& context)
      : services_(services), frame_(services, rpc, context) {}

  // Begins to read; call once, on an object that is held by a shared_ptr.
  void Start(StreamRegistry& registry) {
    self_ = this->shared_from_this();
    if (!registry.Add(self_)) BeginDrain();
    if (!frame_.status().ok()) {
      MutexLock lock(&mutex_);
      final_status_ = frame_.status();
      reads_ended_ = true;
      FinishIfDone();
      return;
    }
    MutexLock lock(&mutex_);
    ReadNext();
  }

  void BeginDrain() override {
    MutexLock lock(&mutex_);
    if (final_status_.ok()) {
      final_status_ = ReasonedError(absl::StatusCode::kUnavailable, ErrorReason::kDraining,
                                    "the server is shutting down");
    }
    is_draining_ = true;
    FinishIfDone();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      MutexLock lock(&mutex_);
      reads_ended_ = true;
      FinishIfDone();
      return;
    }
    std::unique_ptr<Request> request = std::move(incoming_);
    {
      MutexLock lock(&mutex_);
      ++unanswered_;
    }
    OnRequest(std::move(request));
    MutexLock lock(&mutex_);
    if (unanswered_ < services_.limits.max_stream_requests) {
      ReadNext();
    } else {
      is_read_paused_ = true;
    }
  }

  void OnWriteDone(bool ok) override {
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
  }

  void OnCancel() override {
    frame_.Cancel();
    MutexLock lock(&mutex_);
    is_broken_ = true;
    WriteNext();
    FinishIfDone();
  }

  void OnDone() override { self_.reset(); }

 protected:
  // Must lead, now or later and on any thread, to exactly one answer that is the last.
  virtual void OnRequest(std::unique_ptr<Request> request) = 0;

  // Sends an answer. Exactly one answer of a request is last; on_written, only with answers that
  // are not, runs after it has left, and produces the next. On a broken stream answers are dropped
  // and on_written does not run.
  void Send(std::unique_ptr<Response> response, bool is_last,
            std::function<void()> on_written = nullptr) {
    MutexLock lock(&mutex_);
    outgoing_.push_back({std::move(response), is_last, std::move(on_written)});
    WriteNext();
    FinishIfDone();
  }

  const ServiceContext& services() const { return services_; }
  const CallFrame& frame() const { return frame_; }

 private:
  struct Outgoing {
    std::unique_ptr<Response> response;
    bool is_last;
    std::function<void()> on_written;
  };

  void ReadNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (is_finished_) return;
    incoming_ = std::make_unique<Request>();
    this->StartRead(incoming_.get());
  }

  void Answered() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    --unanswered_;
    if (!is_read_paused_) return;
    is_read_paused_ = false;
    ReadNext();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (is_writing_) return;
    // Nobody reads any more: what is queued counts as answered.
    while (is_broken_ && !outgoing_.empty()) {
      const Outgoing dropped = std::move(outgoing_.front());
      outgoing_.pop_front();
      if (dropped.is_last || dropped.on_written) Answered();
    }
    if (outgoing_.empty()) return;
    is_writing_ = true;
    this->StartWrite(outgoing_.front().response.get());
  }

  void FinishIfDone() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (is_finished_ || unanswered_ > 0 || is_writing_ || !outgoing_.empty()) return;
    if (!reads_ended_ && !is_draining_) return;
    is_finished_ = true;
    absl::Status status = final_status_;
    if (is_broken_ && status.ok()) status = absl::CancelledError("the client has gone");
    frame_.Finish(status);
    grpc::ServerBidiReactor<Request, Response>::Finish(ToGrpcStatus(status));
  }

  const ServiceContext& services_;
  CallFrame frame_;
  std::shared_ptr<PipelinedStream> self_;  // gRPC's share, until OnDone
  std::unique_ptr<Request> incoming_;      // touched only between StartRead and OnReadDone

  Mutex mutex_;
  std::deque<Outgoing> outgoing_ ABSL_GUARDED_BY(mutex_);
  absl::Status final_status_ ABSL_GUARDED_BY(mutex_);
  int unanswered_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_read_paused_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool reads_ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace attention::server
