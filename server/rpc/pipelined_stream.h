// A bidirectional stream that answers many requests, each in its own time.
//
// It reads ahead up to a bound of unanswered requests and of bytes, so a slow reader costs bounded
// memory and slows only itself: answers wait in the queue of writes, and a request counts, with its
// own bytes and its answers', until its last answer is written. The stream ends with OK when the
// client has half-closed it and all is answered, with INVALID_ARGUMENT after a message that is
// none, and draining ends it with UNAVAILABLE once nothing is in flight. When its client has gone
// it ends as soon as what it has in the scheduler is back.
//
// Thread-safety: all methods. A subclass's OnRequest is called for one request at a time, in the
// order read. The stream is shared: it holds itself until gRPC is done with the call, and whoever
// will still Send holds it too, so that an answer computed on another thread never meets a stream
// that is gone.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "server/base/contain_exceptions.h"
#include "server/base/mutex.h"
#include "server/rpc/calls_in_flight.h"
#include "server/rpc/completion_threads.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"

namespace attention::server {

class PipelinedStream;

// A streaming method that carries tensors. Outlives its streams.
struct StreamMethod {
  using Channel = grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

  const ServiceContext& services;
  const char* rpc;  // for logs
  StreamRegistry& registry;
  // The generated Request method: asks gRPC for the next stream.
  std::function<void(grpc::ServerContext*, Channel*, void* tag)> request_next;
  std::function<std::shared_ptr<PipelinedStream>(const StreamMethod&)> make;
};

class PipelinedStream : public DrainableStream,
                        private Receiver,
                        public std::enable_shared_from_this<PipelinedStream> {
 public:
  // Offers gRPC one more stream of the method, unless no more are waited for.
  static void Listen(const StreamMethod& method);

  explicit PipelinedStream(const StreamMethod& method)
      : place_(method.services.calls_in_flight), method_(method) {}

  void BeginDrain() override;

 protected:
  // Must lead, now or later and on any thread, to exactly one answer that is the last; or returns,
  // or throws, why there will be none, which ends the stream.
  virtual absl::Status OnRequest(const grpc::ByteBuffer& request) = 0;

  // One answer to a request. Exactly one of a request's answers is last.
  struct Answer {
    grpc::ByteBuffer response;
    bool is_last = true;
    std::size_t request_bytes = 0;  // of the request's message
    // Only with answers that are not the last: runs after it has left, and produces the next. What
    // it throws ends the stream.
    std::function<void()> on_written = nullptr;
  };

  // On a broken stream answers are dropped and on_written does not run.
  void Send(Answer answer);
  // Sends the last answer to a request: what `make` returns, a serialized message. Its exceptions
  // end the stream.
  template <typename Make>
  void SendLast(std::size_t request_bytes, Make make) {
    absl::StatusOr<grpc::ByteBuffer> response =
        ContainExceptions([&]() -> absl::StatusOr<grpc::ByteBuffer> { return make(); });
    if (response.ok()) {
      Send({*std::move(response), /*is_last=*/true, request_bytes});
    } else {
      BreakOff(response.status(), request_bytes);
    }
  }

  const ServiceContext& services() const { return method_.services; }
  const CallFrame& frame() const { return *frame_; }

 private:
  absl::Time WaitsSince() const override;
  void EndReceiving(const absl::Status& status) override;

  absl::Status Begin();
  void OnArrived(bool ok);
  void OnReadDone(bool ok);
  void OnWriteDone(bool ok);
  void OnDone(bool ok);
  void OnFinished(bool ok);

  void ReadNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndReads(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // After a request has been taken, or answered: reads the next, or pauses until there is room.
  void ReadOn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResumeReads() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayReadAhead() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the first answer out of the queue; it has left, or never will.
  Answer TakeFront() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RequestAnswered(std::size_t request_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishIfDone() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A request will have no answer: the stream ends with the reason.
  void BreakOff(const absl::Status& status, std::size_t request_bytes);
  // An event has been handled; after the last one gRPC is done with the stream.
  void EventHandled();

  CallsInFlight::Place place_;
  const StreamMethod& method_;
  grpc::ServerContext context_;
  StreamMethod::Channel channel_{&context_};
  const CancelFlag is_cancelled_ = MakeCancelFlag();
  std::optional<CallFrame> frame_;
  std::optional<ReceivingLedger::Place> receiving_;  // from Begin until the last event
  grpc::ByteBuffer incoming_;                        // touched only between Read and OnReadDone
  EventOf<PipelinedStream, &PipelinedStream::OnArrived> arrived_{this};
  EventOf<PipelinedStream, &PipelinedStream::OnReadDone> read_done_{this};
  EventOf<PipelinedStream, &PipelinedStream::OnWriteDone> write_done_{this};
  EventOf<PipelinedStream, &PipelinedStream::OnDone> done_{this};
  EventOf<PipelinedStream, &PipelinedStream::OnFinished> finished_{this};

  mutable Mutex mutex_;
  std::shared_ptr<PipelinedStream> self_ ABSL_GUARDED_BY(mutex_);  // gRPC's share
  int pending_events_ ABSL_GUARDED_BY(mutex_) = 2;                 // arrived and done at first
  std::deque<Answer> outgoing_ ABSL_GUARDED_BY(mutex_);
  absl::Status final_status_ ABSL_GUARDED_BY(mutex_);
  int unanswered_ ABSL_GUARDED_BY(mutex_) = 0;
  std::size_t held_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of those, and of outgoing_
  bool has_arrived_ ABSL_GUARDED_BY(mutex_) = false;
  // Infinite while no message is asked for.
  absl::Time waits_since_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_read_paused_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool reads_ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace attention::server
