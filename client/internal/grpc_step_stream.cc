#include "client/internal/grpc_step_stream.h"

#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "attention/v1/session_service.pb.h"
#include "client/internal/callback_threads.h"
#include "client/internal/convert.h"
#include "client/internal/error_details.h"
#include "client/internal/status_macros.h"

namespace attention::client::internal {

// One write is under way at a time and the rest wait in a queue; reads follow each other. A hold,
// taken before the call starts and given up when reading ends, lets StepAsync and Finish start
// operations from outside of reactions until then. Callbacks run without the lock.
class GrpcStepStream::Reactor final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public std::enable_shared_from_this<Reactor> {
 public:
  Reactor(std::shared_ptr<Transport> transport, const CallSettings& settings, int max_outstanding)
      : transport_(std::move(transport)),
        max_outstanding_(static_cast<size_t>(max_outstanding)),
        context_(settings) {}

  void Start(size_t target) {
    self_ = shared_from_this();
    KeepCallbackThreads();
    transport_->targets().EndpointOf(target).stub.PrepareBidiStreamingCall(
        context_.grpc(), ATTN_METHOD(SessionService, StepStream), {}, this);
    AddHold();
    StartRead(&response_);
    StartCall();
  }

  // Of a request to submit.
  uint64_t NewId() { return next_id_++; }

  // Takes the request, or returns why not; `done` is then left to the caller.
  absl::Status Submit(uint64_t id, grpc::ByteBuffer request, Callback& done) {
    absl::MutexLock lock(&mutex_);
    if (!status_.ok()) return status_;
    if (is_finishing_) return absl::FailedPreconditionError("the stream is finishing");
    if (outstanding_.size() >= max_outstanding_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("max_outstanding: ", max_outstanding_, " steps are unanswered"));
    }
    outstanding_.emplace(id, std::move(done));
    queue_.push_back(std::move(request));
    WriteNext();
    return absl::OkStatus();
  }

  absl::Status Finish() {
    absl::MutexLock lock(&mutex_);
    is_finishing_ = true;
    WriteNext();
    mutex_.Await(absl::Condition(&is_done_));
    return status_;
  }

  void Cancel() { context_.grpc()->TryCancel(); }

  absl::Status status() const {
    absl::MutexLock lock(&mutex_);
    return status_;
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    queue_.pop_front();
    is_writing_ = false;
    if (ok) WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return OnReadingEnded();
    absl::Status status = ReadAnswer<v1::StepStreamResponse>(
        response_,
        [this](const auto& message, const auto& received) { return Deliver(message, received); });
    response_.Clear();
    if (!status.ok()) BreakOff(std::move(status));
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& grpc_status) override {
    const std::shared_ptr<Reactor> self = std::move(self_);
    absl::flat_hash_map<uint64_t, Callback> unanswered;
    absl::Status status;
    {
      absl::MutexLock lock(&mutex_);
      unanswered.swap(outstanding_);
      status_ = FinalStatus(FromGrpcStatus(grpc_status), unanswered.size());
      status = status_;
      queue_.clear();
      is_closed_ = true;
    }
    for (const auto& [id, done] : unanswered) done(status);
    absl::MutexLock lock(&mutex_);
    is_done_ = true;
  }

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (is_writing_ || is_closed_) return;
    if (!queue_.empty()) {
      is_writing_ = true;
      StartWrite(&queue_.front());
    } else if (is_finishing_ && !has_half_closed_) {
      has_half_closed_ = true;
      StartWritesDone();
    }
  }

  // The server has ended the stream, or it broke: nothing more can be written either.
  void OnReadingEnded() {
    {
      absl::MutexLock lock(&mutex_);
      is_closed_ = true;
      // Until OnDone brings the reason.
      if (!is_finishing_) status_ = absl::UnavailableError("the step stream has ended");
    }
    RemoveHold();
  }

  void BreakOff(absl::Status failure) {
    {
      absl::MutexLock lock(&mutex_);
      failure_ = std::move(failure);
    }
    Cancel();
  }

  Callback TakeCallback(uint64_t id) {
    absl::MutexLock lock(&mutex_);
    const auto found = outstanding_.find(id);
    if (found == outstanding_.end()) return nullptr;
    Callback done = std::move(found->second);
    outstanding_.erase(found);
    return done;
  }

  // Gives an answer to whom it belongs.
  absl::Status Deliver(const v1::StepStreamResponse& response,
                       const codec::ReceivedMessage& received) {
    const Callback done = TakeCallback(response.request_id());
    if (done == nullptr) {
      return absl::InternalError(absl::StrCat("the server answered request ", response.request_id(),
                                              ", which is not outstanding"));
    }
    if (response.has_error()) {
      done(FromStreamError(response.error()));
    } else {
      done(FromWire(response.response(), received));
    }
    return absl::OkStatus();
  }

  absl::Status FinalStatus(absl::Status status, size_t num_unanswered) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!failure_.ok()) return failure_;
    if (!status.ok() || (is_finishing_ && num_unanswered == 0)) return status;
    return absl::UnavailableError(
        absl::StrCat("the server ended the stream with ", num_unanswered, " steps unanswered"));
  }

  const std::shared_ptr<Transport> transport_;
  const size_t max_outstanding_;
  CallContext context_;
  grpc::ByteBuffer response_;      // of the one read under way
  std::shared_ptr<Reactor> self_;  // until OnDone

  std::atomic<uint64_t> next_id_ = 1;

  mutable absl::Mutex mutex_;
  // The front is being written while is_writing_.
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, Callback> outstanding_ ABSL_GUARDED_BY(mutex_);
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

GrpcStepStream::GrpcStepStream(std::shared_ptr<Transport> transport, size_t target,
                               const CallSettings& settings, int max_outstanding)
    : transport_(std::move(transport)),
      reactor_(std::make_shared<Reactor>(transport_, settings, max_outstanding)) {
  reactor_->Start(target);
}

GrpcStepStream::~GrpcStepStream() { reactor_->Cancel(); }

void GrpcStepStream::StepAsync(const StepRequest& request, Callback done) {
  const uint64_t id = reactor_->NewId();
  absl::StatusOr<grpc::ByteBuffer> bytes = Serialize(request, id);
  absl::Status status = bytes.status();
  if (status.ok()) status = reactor_->Submit(id, *std::move(bytes), done);
  if (!status.ok()) done(std::move(status));
}

absl::StatusOr<grpc::ByteBuffer> GrpcStepStream::Serialize(const StepRequest& request,
                                                           uint64_t id) const {
  ATTN_ASSIGN_OR_RETURN(codec::OutgoingMessage wire, ToWire(request));
  v1::StepStreamRequest small_fields;
  small_fields.set_request_id(id);
  codec::OutgoingMessage message(small_fields);
  message.Add(v1::StepStreamRequest::kRequestFieldNumber, std::move(wire));
  return transport_->Serialize(std::move(message));
}

absl::Status GrpcStepStream::Finish() { return reactor_->Finish(); }

void GrpcStepStream::Cancel() { reactor_->Cancel(); }

absl::Status GrpcStepStream::status() const { return reactor_->status(); }

}  // namespace attention::client::internal
