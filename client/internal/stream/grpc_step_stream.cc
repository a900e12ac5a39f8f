#include "client/internal/stream/grpc_step_stream.h"

#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "attention/client/errors.h"
#include "attention/v1/session_service.pb.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/call/answer.h"
#include "client/internal/call/call_context.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/shared_memory/shared_memory_request.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {

// One write is under way at a time and the rest wait in a queue; reads follow each other. A hold,
// taken before the call starts and given up when reading ends, lets StepAsync and Finish start
// operations from outside of reactions until then. Callbacks run without the lock.
//
// A request whose tensors lie in shared memory is kept until it is answered: one whose regions the
// server does not know is sent again, with its tensors. Steps of the same sessions that had
// followed it by then were refused for their position, or attended over too little, so nothing more
// is written until all that is under way is answered, and then those are sent again too, in the
// order in which they were first sent and before all others.
class GrpcStepStream::Reactor final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public std::enable_shared_from_this<Reactor> {
 public:
  Reactor(std::shared_ptr<Transport> transport, std::shared_ptr<SharedMemoryChannels> shared_memory,
          size_t target, const CallSettings& settings, int max_outstanding)
      : transport_(std::move(transport)),
        shared_memory_(std::move(shared_memory)),
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
    constexpr auto kEncode = [](const StepRequest& given, const TensorRefs* refs) {
      return ToWire(given, refs);
    };
    Outstanding outstanding;
    outstanding.done = std::move(done);
    outstanding.shared = ShareRequest(shared_memory_, target_, request, kEncode);
    absl::StatusOr<grpc::ByteBuffer> bytes =
        Serialize(id, outstanding.shared != nullptr ? outstanding.shared->MessageFor(target_)
                                                    : ToWire(request));
    // Only where memory is shared, requests may have to be sent again.
    if (bytes.ok() && shared_memory_ != nullptr && shared_memory_->has_memory()) {
      outstanding.layers = LayersOf(request);
      if (outstanding.shared == nullptr) outstanding.bytes = *bytes;
    }
    Submit(id, std::move(bytes), std::move(outstanding));
  }

  void Send(const SessionOptions& request, SessionCallback done) {
    const uint64_t id = next_id_++;
    v1::StepStreamRequest message;
    message.set_request_id(id);
    ToProto(request, message.mutable_create_session());
    Outstanding outstanding;
    outstanding.session_done = std::move(done);
    Submit(id, transport_->Serialize(codec::OutgoingMessage(message)), std::move(outstanding));
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
    std::map<uint64_t, Refused> refused;
    absl::Status status;
    {
      absl::MutexLock lock(&mutex_);
      unanswered.swap(outstanding_);
      for (auto& [id, request] : again_) unanswered.emplace(id, std::move(request));
      again_.clear();
      refused.swap(refused_);
      status_ = FinalStatus(FromGrpcStatus(grpc_status), unanswered.size());
      status = status_;
      queue_.clear();
      is_closed_ = true;
    }
    for (auto& [id, request] : refused) request.request.done(std::move(request.result));
    for (const auto& [id, request] : unanswered) {
      // Whatever ended the stream, the server may be at work on it.
      if (request.shared != nullptr) request.shared->OnOutcome(absl::UnknownError("unanswered"));
      request.Fail(status);
    }
    absl::MutexLock lock(&mutex_);
    is_done_ = true;
  }

 private:
  struct Outstanding {
    void Fail(const absl::Status& status) const { done ? done(status) : session_done(status); }

    Callback done;
    SessionCallback session_done;                 // of a session's creation, which has no `done`
    std::shared_ptr<SharedMemoryRequest> shared;  // null: its tensors travelled
    grpc::ByteBuffer bytes;      // what travelled, where it may have to do so again
    std::vector<size_t> layers;  // of sessions, by hash; where that may matter
  };
  // A request that was answered, but may have been so because of one before it.
  struct Refused {
    Outstanding request;
    absl::StatusOr<StepResult> result;
  };

  static std::vector<size_t> LayersOf(const StepRequest& request) {
    std::vector<size_t> layers;
    layers.reserve(request.steps.size());
    for (const SessionStep& step : request.steps) {
      layers.push_back(absl::HashOf(step.handle.session_id, step.layer));
    }
    return layers;
  }
  static bool ShareALayer(const Outstanding& a, const Outstanding& b) {
    return std::find_first_of(a.layers.begin(), a.layers.end(), b.layers.begin(), b.layers.end()) !=
           a.layers.end();
  }

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

  void Submit(uint64_t id, absl::StatusOr<grpc::ByteBuffer> bytes, Outstanding request) {
    absl::Status status = bytes.status();
    if (status.ok()) status = Enqueue(id, *std::move(bytes), request);
    if (!status.ok()) request.Fail(status);
  }

  // Takes the request, or returns why not; `request` is then left to the caller.
  absl::Status Enqueue(uint64_t id, grpc::ByteBuffer bytes, Outstanding& request) {
    absl::MutexLock lock(&mutex_);
    if (!status_.ok()) return status_;
    if (is_finishing_) return absl::FailedPreconditionError("the stream is finishing");
    if (outstanding_.size() + again_.size() + refused_.size() >= max_outstanding_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("max_outstanding: ", max_outstanding_, " steps are unanswered"));
    }
    outstanding_.emplace(id, std::move(request));
    queue_.push_back(std::move(bytes));
    WriteNext();
    return absl::OkStatus();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (is_writing_ || is_closed_ || is_holding_back()) return;
    if (!queue_.empty()) {
      is_writing_ = true;
      StartWrite(&queue_.front());
    } else if (is_finishing_ && !has_half_closed_ && !MaySendAgain()) {
      has_half_closed_ = true;
      StartWritesDone();
    }
  }

  // Requests are to be sent again, and nothing else before them.
  bool is_holding_back() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !again_.empty() || !refused_.empty();
  }

  bool MaySendAgain() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::any_of(outstanding_.begin(), outstanding_.end(),
                       [](const auto& entry) { return entry.second.shared != nullptr; });
  }

  // Written, or being written, and not answered.
  size_t num_under_way() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return outstanding_.size() - (queue_.size() - (is_writing_ ? 1 : 0));
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
    if (!request->done) {
      DeliverSession(response, *request);
    } else {
      const TensorRefs* refs = request->shared != nullptr ? request->shared->refs() : nullptr;
      absl::StatusOr<StepResult> result = response.has_error()
                                              ? FromStreamError(response.error())
                                              : FromWire(response.response(), received, refs);
      const bool is_lost =
          refs != nullptr && request->shared->FallBackToBytes(RegionStatus(result), target_);
      if (!HoldBack(response.request_id(), *request, is_lost, result)) {
        request->done(std::move(result));
      }
    }
    SendAgainOnceQuiet();
    return absl::OkStatus();
  }

  void DeliverSession(const v1::StepStreamResponse& response, const Outstanding& request) {
    if (response.has_error()) return request.session_done(FromStreamError(response.error()));
    if (!response.has_created_session()) {
      return request.session_done(absl::InternalError("the server's answer holds no session"));
    }
    absl::StatusOr<SessionInfo> info = FromProto(v1::Session(response.created_session().session()));
    if (info.ok()) transport_->targets().Learn(info->handle.worker, target_);
    request.session_done(std::move(info));
  }

  // Keeps a request that is to be sent again, because it was lost or followed one that was, or of
  // which that is not known yet. False: its result stands.
  bool HoldBack(uint64_t id, Outstanding& request, bool is_lost,
                absl::StatusOr<StepResult>& result) {
    absl::MutexLock lock(&mutex_);
    const auto precedes = [&](const auto& entry) {
      return entry.first < id && ShareALayer(entry.second, request);
    };
    if (is_lost || std::any_of(again_.begin(), again_.end(), precedes)) {
      again_.emplace(id, std::move(request));
      return true;
    }
    const bool follows_shared =
        IsMisplaced(result) &&
        std::any_of(outstanding_.begin(), outstanding_.end(), [&](const auto& entry) {
          return entry.second.shared != nullptr && precedes(entry);
        });
    if (follows_shared) refused_.emplace(id, Refused{std::move(request), std::move(result)});
    return follows_shared;
  }

  // True if a step was refused for its position, as it is when the one before it is missing.
  static bool IsMisplaced(const absl::StatusOr<StepResult>& result) {
    return result.ok() && std::any_of(result->results.begin(), result->results.end(),
                                      [](const SessionStepResult& step) {
                                        return ReasonOf(step.status) == kPositionMismatch;
                                      });
  }

  // To be called when a request has been answered.
  void SendAgainOnceQuiet() {
    std::vector<Refused> answered;
    std::vector<std::pair<Outstanding, absl::Status>> failed;
    {
      absl::MutexLock lock(&mutex_);
      if (is_holding_back() && num_under_way() > 0) return;
      for (auto& [id, refused] : refused_) {
        const bool is_caused = std::any_of(again_.begin(), again_.end(), [&](const auto& entry) {
          return entry.first < id && ShareALayer(entry.second, refused.request);
        });
        if (is_caused) {
          again_.emplace(id, std::move(refused.request));
        } else {
          answered.push_back(std::move(refused));
        }
      }
      refused_.clear();
      size_t place = is_writing_ ? 1 : 0;
      for (auto& [id, request] : std::exchange(again_, {})) {
        absl::StatusOr<grpc::ByteBuffer> bytes =
            request.shared != nullptr ? Serialize(id, request.shared->MessageFor(target_))
                                      : absl::StatusOr<grpc::ByteBuffer>(request.bytes);
        if (!bytes.ok()) {
          failed.emplace_back(std::move(request), bytes.status());
          continue;
        }
        queue_.insert(queue_.begin() + static_cast<std::ptrdiff_t>(place++), *std::move(bytes));
        outstanding_.emplace(id, std::move(request));
      }
      WriteNext();
    }
    for (Refused& refused : answered) refused.request.done(std::move(refused.result));
    for (const auto& [request, status] : failed) request.Fail(status);
  }

  absl::Status FinalStatus(absl::Status status, size_t num_unanswered) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!failure_.ok()) return failure_;
    if (!status.ok() || (is_finishing_ && num_unanswered == 0)) return status;
    return absl::UnavailableError(
        absl::StrCat("the server ended the stream with ", num_unanswered, " steps unanswered"));
  }

  const std::shared_ptr<Transport> transport_;
  const std::shared_ptr<SharedMemoryChannels> shared_memory_;
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
  std::map<uint64_t, Outstanding> again_ ABSL_GUARDED_BY(mutex_);  // to be sent again
  std::map<uint64_t, Refused> refused_ ABSL_GUARDED_BY(mutex_);    // perhaps to be sent again
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

GrpcStepStream::GrpcStepStream(std::shared_ptr<Transport> transport,
                               std::shared_ptr<SharedMemoryChannels> shared_memory, size_t target,
                               const CallSettings& settings, int max_outstanding)
    : reactor_(std::make_shared<Reactor>(std::move(transport), std::move(shared_memory), target,
                                         settings, max_outstanding)) {
  reactor_->Start();
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
