#include "client/internal/grpc_step_stream.h"

#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <deque>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "attention/v1/session_service.pb.h"
#include "client/internal/callback_threads.h"
#include "client/internal/convert.h"
#include "client/internal/error_details.h"
#include "client/internal/outgoing_request.h"
#include "client/internal/status_macros.h"

namespace attention::client::internal {

// One write is under way at a time and the rest wait in a queue; reads follow each other. A hold,
// taken before the call starts and given up when reading ends, lets StepAsync and Finish start
// operations from outside of reactions until then. Callbacks run without the lock.
//
// A request whose tensors lie in shared memory is kept until it is answered. One whose places the
// server does not know is sent once more, with its tensors, behind those that were sent meanwhile:
// of a session's steps, later ones may then have been refused for their position.
class GrpcStepStream::Reactor final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public std::enable_shared_from_this<Reactor> {
 public:
  Reactor(std::shared_ptr<Transport> transport, size_t target, const CallSettings& settings,
          int max_outstanding)
      : transport_(std::move(transport)),
        target_(target),
        max_outstanding_(static_cast<size_t>(max_outstanding)),
        context_(settings) {}

  void Start() {
    self_ = shared_from_this();
    KeepCallbackThreads();
    transport_->targets().EndpointOf(target_).stub.PrepareBidiStreamingCall(
        context_.grpc(), ATTN_METHOD(SessionService, StepStream), {}, this);
    AddHold();
    StartRead(&response_);
    StartCall();
  }

  // Sends the request, or fails it at once.
  void Send(const StepRequest& request, Callback done) {
    const uint64_t id = next_id_++;
    constexpr auto kEncode = [](const StepRequest& given, const SharedPlaces* places) {
      return ToWire(given, places);
    };
    Outstanding outstanding{std::move(done), ShareRequest(transport_->lanes(), request, kEncode)};
    absl::StatusOr<grpc::ByteBuffer> bytes =
        Serialize(id, outstanding.shared != nullptr ? outstanding.shared->MessageFor(target_)
                                                    : ToWire(request));
    absl::Status status = bytes.status();
    if (status.ok()) status = Submit(id, *std::move(bytes), outstanding);
    if (!status.ok()) outstanding.done(std::move(status));
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
    absl::flat_hash_map<uint64_t, Outstanding> unanswered;
    absl::Status status;
    {
      absl::MutexLock lock(&mutex_);
      unanswered.swap(outstanding_);
      status_ = FinalStatus(FromGrpcStatus(grpc_status), unanswered.size());
      status = status_;
      queue_.clear();
      is_closed_ = true;
    }
    for (const auto& [id, request] : unanswered) {
      // Whatever ended the stream, the server may be at work on it.
      if (request.shared != nullptr) request.shared->OnOutcome(absl::UnknownError("unanswered"));
      request.done(status);
    }
    absl::MutexLock lock(&mutex_);
    is_done_ = true;
  }

 private:
  struct Outstanding {
    Callback done;
    std::shared_ptr<OutgoingRequest> shared;  // null: its tensors travelled
  };

  // The message to send, with its id on the stream.
  absl::StatusOr<grpc::ByteBuffer> Serialize(uint64_t id,
                                             absl::StatusOr<codec::OutgoingMessage> wire) const {
    if (!wire.ok()) return std::move(wire).status();
    v1::StepStreamRequest small_fields;
    small_fields.set_request_id(id);
    codec::OutgoingMessage message(small_fields);
    message.Add(v1::StepStreamRequest::kRequestFieldNumber, *std::move(wire));
    return transport_->Serialize(std::move(message));
  }

  // Takes the request, or returns why not; `request` is then left to the caller.
  absl::Status Submit(uint64_t id, grpc::ByteBuffer bytes, Outstanding& request) {
    absl::MutexLock lock(&mutex_);
    if (!status_.ok()) return status_;
    if (is_finishing_) return absl::FailedPreconditionError("the stream is finishing");
    if (outstanding_.size() >= max_outstanding_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("max_outstanding: ", max_outstanding_, " steps are unanswered"));
    }
    outstanding_.emplace(id, std::move(request));
    queue_.push_back(std::move(bytes));
    WriteNext();
    return absl::OkStatus();
  }

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

  std::optional<Outstanding> TakeOutstanding(uint64_t id) {
    absl::MutexLock lock(&mutex_);
    const auto found = outstanding_.find(id);
    if (found == outstanding_.end()) return std::nullopt;
    Outstanding request = std::move(found->second);
    outstanding_.erase(found);
    return request;
  }

  // Gives an answer to whom it belongs.
  absl::Status Deliver(const v1::StepStreamResponse& response,
                       const codec::ReceivedMessage& received) {
    std::optional<Outstanding> request = TakeOutstanding(response.request_id());
    if (!request.has_value()) {
      return absl::InternalError(absl::StrCat("the server answered request ", response.request_id(),
                                              ", which is not outstanding"));
    }
    const SharedPlaces* places =
        request->shared != nullptr ? request->shared->places().get() : nullptr;
    absl::StatusOr<StepResult> result = response.has_error()
                                            ? FromStreamError(response.error())
                                            : FromWire(response.response(), received, places);
    if (places != nullptr && request->shared->TakeBackIfLost(RegionStatus(result), target_)) {
      SendAgain(*std::move(request));
    } else {
      request->done(std::move(result));
    }
    return absl::OkStatus();
  }

  void SendAgain(Outstanding request) {
    const uint64_t id = next_id_++;
    absl::StatusOr<grpc::ByteBuffer> bytes = Serialize(id, request.shared->MessageFor(target_));
    absl::Status status = bytes.status();
    if (status.ok()) status = Submit(id, *std::move(bytes), request);
    if (absl::IsFailedPrecondition(status)) {
      status =
          absl::UnavailableError("the server has lost the request, and the stream is finishing");
    }
    if (!status.ok()) request.done(std::move(status));
  }

  absl::Status FinalStatus(absl::Status status, size_t num_unanswered) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!failure_.ok()) return failure_;
    if (!status.ok() || (is_finishing_ && num_unanswered == 0)) return status;
    return absl::UnavailableError(
        absl::StrCat("the server ended the stream with ", num_unanswered, " steps unanswered"));
  }

  const std::shared_ptr<Transport> transport_;
  const size_t target_;
  const size_t max_outstanding_;
  CallContext context_;
  grpc::ByteBuffer response_;      // of the one read under way
  std::shared_ptr<Reactor> self_;  // until OnDone

  std::atomic<uint64_t> next_id_ = 1;

  mutable absl::Mutex mutex_;
  // The front is being written while is_writing_.
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, Outstanding> outstanding_ ABSL_GUARDED_BY(mutex_);
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
    : reactor_(std::make_shared<Reactor>(std::move(transport), target, settings, max_outstanding)) {
  reactor_->Start();
}

GrpcStepStream::~GrpcStepStream() { reactor_->Cancel(); }

void GrpcStepStream::StepAsync(const StepRequest& request, Callback done) {
  reactor_->Send(request, std::move(done));
}

absl::Status GrpcStepStream::Finish() { return reactor_->Finish(); }

void GrpcStepStream::Cancel() { reactor_->Cancel(); }

absl::Status GrpcStepStream::status() const { return reactor_->status(); }

}  // namespace attention::client::internal
