#include "client/internal/stream/grpc_step_stream.h"

#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "attention/v1/session_service.pb.h"
#include "client/internal/call/answer.h"
#include "client/internal/call/call_context.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/stream/pending_steps.h"
#include "client/internal/stream/step_messages.h"
#include "client/internal/stream/write_queue.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {

// One write is under way at a time and the rest wait in a queue; reads follow each other. A hold,
// taken before the call starts and given up when reading ends, lets StepAsync and Finish start
// operations from outside of reactions until then. Callbacks run without the lock.
//
// Once a request is to be sent again (PendingSteps), nothing more is written until all that is
// under way is answered.
class GrpcStepStream::Reactor final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public std::enable_shared_from_this<Reactor> {
 public:
  Reactor(StepMessages messages, const CallSettings& settings, int max_outstanding)
      : messages_(std::move(messages)),
        max_outstanding_(static_cast<std::size_t>(max_outstanding)),
        context_(settings) {}

  // Not OK: the stream must not be started, as there is no token for it.
  const absl::Status& readiness() const { return context_.status(); }

  void Start(Endpoint& endpoint) {
    self_ = shared_from_this();
    KeepCallbackThreads();
    endpoint.stub.PrepareBidiStreamingCall(
        context_.grpc(), ATTENTION_CLIENT_METHOD(SessionService, StepStream), {}, this);
    AddHold();
    StartRead(&response_);
    StartCall();
  }

  // Sends the request, or fails it at once.
  void Send(const StepRequest& request, Callback done) {
    const std::uint64_t id = next_id_++;
    PendingStep step;
    step.done = std::move(done);
    absl::StatusOr<grpc::ByteBuffer> bytes = messages_.Make(id, request, step);
    Submit(id, std::move(bytes), std::move(step));
  }

  void Send(const SessionOptions& request, SessionCallback done) {
    const std::uint64_t id = next_id_++;
    PendingStep step;
    step.session_done = std::move(done);
    Submit(id, messages_.Make(id, request), std::move(step));
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
    queue_.OnWritten();
    if (ok) WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return OnReadingEnded();
    absl::Status status = ReadAnswer<v1::StepStreamResponse>(
        response_,
        [this](const auto& message, const auto& received) { return Deliver(message, received); });
    response_.Clear();
    if (!status.ok()) {
      absl::ReleasableMutexLock lock(&mutex_);
      failure_ = std::move(status);
      lock.Release();
      Cancel();
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& grpc_status) override;

 private:
  void Submit(std::uint64_t id, absl::StatusOr<grpc::ByteBuffer> bytes, PendingStep step) {
    absl::Status status = bytes.status();
    if (status.ok()) status = Enqueue(id, *std::move(bytes), step);
    if (!status.ok()) step.Fail(status);
  }

  // Takes the request, or returns why not; `step` is then left to the caller.
  absl::Status Enqueue(std::uint64_t id, grpc::ByteBuffer bytes, PendingStep& step) {
    absl::MutexLock lock(&mutex_);
    if (!status_.ok()) return status_;
    if (is_finishing_) return absl::FailedPreconditionError("the stream is finishing");
    if (steps_.size() >= max_outstanding_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("max_outstanding: ", max_outstanding_, " steps are unanswered"));
    }
    steps_.Add(id, std::move(step));
    queue_.Push(std::move(bytes));
    WriteNext();
    return absl::OkStatus();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (queue_.is_writing() || is_closed_ || steps_.is_holding_back()) return;
    if (const grpc::ByteBuffer* next = queue_.StartNext(); next != nullptr) {
      StartWrite(next);
    } else if (is_finishing_ && !has_half_closed_ && !steps_.may_send_again()) {
      has_half_closed_ = true;
      StartWritesDone();
    }
  }

  // The server has ended the stream, or it broke: nothing more can be written either.
  void OnReadingEnded() {
    {
      absl::MutexLock lock(&mutex_);
      is_closed_ = true;
      // For steps that come before OnDone, which brings the reason.
      if (!is_finishing_) status_ = absl::UnavailableError("the step stream has ended");
    }
    RemoveHold();
  }

  // Gives an answer to the request that it belongs to.
  absl::Status Deliver(const v1::StepStreamResponse& response,
                       const codec::ReceivedMessage& received);
  bool HoldBack(std::uint64_t id, PendingStep& step, StepMessages::Answer& answer) {
    absl::MutexLock lock(&mutex_);
    return steps_.HoldBack(id, step, answer.is_lost, answer.result);
  }

  // To be called when a request has been answered.
  void SendAgainOnceQuiet();

  absl::Status FinalStatus(absl::Status status, std::size_t num_unanswered) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!failure_.ok()) return failure_;
    if (!status.ok() || (is_finishing_ && num_unanswered == 0)) return status;
    return absl::UnavailableError(
        absl::StrCat("the server ended the stream with ", num_unanswered, " steps unanswered"));
  }

  const StepMessages messages_;
  const std::size_t max_outstanding_;
  CallContext context_;
  grpc::ByteBuffer response_;      // of the one read under way
  std::shared_ptr<Reactor> self_;  // until OnDone

  std::atomic<std::uint64_t> next_id_ = 1;

  mutable absl::Mutex mutex_;
  WriteQueue queue_ ABSL_GUARDED_BY(mutex_);
  PendingSteps steps_ ABSL_GUARDED_BY(mutex_);
  bool is_finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

void GrpcStepStream::Reactor::OnDone(const grpc::Status& grpc_status) {
  const std::shared_ptr<Reactor> self = std::move(self_);
  PendingSteps::Decided left;
  absl::Status status;
  {
    absl::MutexLock lock(&mutex_);
    left = steps_.Clear();
    status_ = FinalStatus(FromGrpcStatus(grpc_status), left.again.size());
    status = status_;
    queue_.Clear();
    is_closed_ = true;
  }
  for (auto& [id, refused] : left.answered) refused.step.done(std::move(refused.result));
  for (const auto& [id, step] : left.again) {
    // The server may still be at work on the step, whatever ended the stream.
    if (step.shared != nullptr) step.shared->OnOutcome(absl::UnknownError("unanswered"));
    step.Fail(status);
  }
  absl::MutexLock lock(&mutex_);
  is_done_ = true;
}

absl::Status GrpcStepStream::Reactor::Deliver(const v1::StepStreamResponse& response,
                                              const codec::ReceivedMessage& received) {
  const std::uint64_t id = response.request_id();
  std::optional<PendingStep> step;
  {
    absl::MutexLock lock(&mutex_);
    step = steps_.Take(id);
  }
  if (!step.has_value()) {
    return absl::InternalError(
        absl::StrCat("the server answered request ", id, ", which is not outstanding"));
  }
  if (step->session_done) {
    step->session_done(messages_.ReadSession(response));
  } else {
    StepMessages::Answer answer = messages_.Read(response, received, *step);
    if (!HoldBack(id, *step, answer)) step->done(std::move(answer.result));
  }
  SendAgainOnceQuiet();
  return absl::OkStatus();
}

void GrpcStepStream::Reactor::SendAgainOnceQuiet() {
  PendingSteps::Decided decided;
  std::vector<std::pair<PendingStep, absl::Status>> failed;
  {
    absl::MutexLock lock(&mutex_);
    const bool is_quiet = steps_.num_sent() == queue_.num_waiting();  // none is under way
    if (steps_.is_holding_back() && !is_quiet) return;
    decided = steps_.Decide();
    std::vector<grpc::ByteBuffer> again;
    for (auto& [id, step] : decided.again) {
      absl::StatusOr<grpc::ByteBuffer> bytes = messages_.MakeAgain(id, step);
      if (!bytes.ok()) {
        failed.emplace_back(std::move(step), bytes.status());
        continue;
      }
      again.push_back(*std::move(bytes));
      steps_.Add(id, std::move(step));
    }
    queue_.PushFirst(std::move(again));
    WriteNext();
  }
  for (auto& [id, refused] : decided.answered) refused.step.done(std::move(refused.result));
  for (const auto& [step, status] : failed) step.Fail(status);
}

absl::StatusOr<std::unique_ptr<StepStream>> GrpcStepStream::Open(
    const std::shared_ptr<Transport>& transport,
    std::shared_ptr<SharedMemoryChannels> shared_memory, std::size_t target,
    const CallSettings& settings, int max_outstanding) {
  auto reactor = std::make_shared<Reactor>(
      StepMessages(transport, std::move(shared_memory), target), settings, max_outstanding);
  if (!reactor->readiness().ok()) return reactor->readiness();
  reactor->Start(transport->targets().EndpointOf(target));
  return std::unique_ptr<StepStream>(new GrpcStepStream(std::move(reactor)));
}

GrpcStepStream::~GrpcStepStream() { reactor_->Cancel(); }

void GrpcStepStream::StepAsync(const StepRequest& request, Callback done) {
  reactor_->Send(request, std::move(done));
}

void GrpcStepStream::CreateSessionAsync(const SessionOptions& request, SessionCallback done) {
  reactor_->Send(request, std::move(done));
}

absl::Status GrpcStepStream::Finish() { return reactor_->Finish(); }

void GrpcStepStream::Cancel() { reactor_->Cancel(); }

absl::Status GrpcStepStream::status() const { return reactor_->status(); }

}  // namespace attention::client::internal
