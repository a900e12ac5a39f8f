#include "client/internal/stream/weights_call.h"

#include <grpcpp/support/client_callback.h>

#include <optional>
#include <utility>

#include "attention/v1/attention_service.pb.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/call/answer.h"
#include "client/internal/call/call_context.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {
namespace {

// There is one request on the stream, so that any id is unique.
constexpr std::uint64_t kRequestId = 1;

class WeightsCall final : public RetryingCall {
 public:
  WeightsCall(std::shared_ptr<Transport> transport, Route route, const CallSettings& settings,
              std::shared_ptr<OutgoingRequest> request, std::shared_ptr<SharedMemoryRequest> shared,
              WeightsCallback on_block, Callback<AttendResult> done)
      : RetryingCall(transport->timer(), transport->random(), settings),
        transport_(std::move(transport)),
        route_(std::move(route)),
        request_(std::move(request)),
        shared_(std::move(shared)),
        on_block_(std::move(on_block)),
        done_(std::move(done)) {}

  absl::Status TakeResult(const v1::AttendResponse& message,
                          const codec::ReceivedMessage& received) {
    const TensorRefs* refs = shared_ != nullptr ? shared_->refs() : nullptr;
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result_, FromWire(message, received, refs));
    return absl::OkStatus();
  }
  bool has_result() const { return result_.has_value(); }

  absl::Status TakeBlock(const v1::WeightsBlock& message, const codec::ReceivedMessage& received) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(WeightsBlock block, FromWire(message, received));
    has_shown_block_ = true;
    on_block_(std::move(block));
    return absl::OkStatus();
  }

  // The end of an attempt. A target that does not know the memory is sent the tensors.
  void OnStreamEnded(const absl::Status& outcome) {
    request_->OnOutcome(outcome);
    const bool can_retry = !has_shown_block_;
    if (can_retry && shared_ != nullptr && shared_->FallBackToBytes(outcome, target_)) {
      return OpenStream();
    }
    OnOutcome({.status = outcome, .can_retry = can_retry});
  }

 private:
  void StartAttempt(int attempt) override {
    target_ = route_(attempt);
    OpenStream();
  }
  void OpenStream();

  void OnDone(const absl::Status& status) override {
    if (!status.ok()) return done_(status);
    done_(*std::move(result_));
  }

  const std::shared_ptr<Transport> transport_;
  const Route route_;
  const std::shared_ptr<OutgoingRequest> request_;
  const std::shared_ptr<SharedMemoryRequest> shared_;
  const WeightsCallback on_block_;
  const Callback<AttendResult> done_;
  std::size_t target_ = 0;  // of the last attempt
  std::optional<AttendResult> result_;
  bool has_shown_block_ = false;
};

// One attempt; deletes itself when gRPC is done with it. gRPC runs at most one of the reactions
// that touch its state at a time, because each read is started by the reaction to the one before.
class WeightsReactor final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  WeightsReactor(std::shared_ptr<WeightsCall> call, const CallSettings& settings,
                 grpc::ByteBuffer bytes)
      : call_(std::move(call)), context_(settings), bytes_(std::move(bytes)) {}

  void Start(Endpoint& endpoint) {
    if (!context_.status().ok()) return Finish(context_.status());
    endpoint.stub.PrepareBidiStreamingCall(
        context_.grpc(), ATTENTION_CLIENT_METHOD(AttentionService, AttendStream), {}, this);
    StartWriteLast(&bytes_, grpc::WriteOptions());
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    const absl::Status status = ReadAnswer<v1::AttendStreamResponse>(
        response_,
        [this](const auto& message, const auto& received) { return Take(message, received); });
    if (!status.ok()) {
      failure_.Update(status);
      context_.grpc()->TryCancel();
    }
    response_.Clear();
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    absl::Status outcome = failure_;
    outcome.Update(FromGrpcStatus(status));
    if (outcome.ok() && !(is_complete_ && call_->has_result())) {
      outcome = absl::InternalError("the server ended the stream before the result was complete");
    }
    Finish(outcome);
  }

 private:
  void Finish(const absl::Status& outcome) {
    // Freed before the caller hears, as the caller may then end the program.
    const absl::Status last = outcome;
    const std::shared_ptr<WeightsCall> call = call_;
    delete this;
    call->OnStreamEnded(last);
  }

  absl::Status Take(const v1::AttendStreamResponse& response,
                    const codec::ReceivedMessage& received) {
    is_complete_ = is_complete_ || response.is_last();
    if (response.has_error()) return FromStreamError(response.error());
    if (response.has_response()) {
      ATTENTION_CLIENT_RETURN_IF_ERROR(call_->TakeResult(response.response(), received));
    }
    if (response.has_weights()) return call_->TakeBlock(response.weights(), received);
    return absl::OkStatus();
  }

  const std::shared_ptr<WeightsCall> call_;
  CallContext context_;
  const grpc::ByteBuffer bytes_;
  grpc::ByteBuffer response_;
  absl::Status failure_;
  bool is_complete_ = false;
};

void WeightsCall::OpenStream() {
  absl::StatusOr<grpc::ByteBuffer> bytes = request_->BytesFor(target_);
  if (!bytes.ok()) return OnOutcome({.status = std::move(bytes).status(), .can_retry = false});
  KeepCallbackThreads();
  auto self = std::static_pointer_cast<WeightsCall>(shared_from_this());
  auto* reactor = new WeightsReactor(std::move(self), settings(), *std::move(bytes));
  reactor->Start(transport_->targets().EndpointOf(target_));
}

}  // namespace

absl::StatusOr<codec::OutgoingMessage> WeightsRequest(const AttendRequest& request,
                                                      const TensorRefs* refs) {
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(codec::OutgoingMessage wire,
                                    ToWire(request, /*weights=*/true, refs));
  v1::AttendStreamRequest small_fields;
  small_fields.set_request_id(kRequestId);
  codec::OutgoingMessage message(small_fields);
  message.Add(v1::AttendStreamRequest::kRequestFieldNumber, std::move(wire));
  return message;
}

void StartWeightsCall(std::shared_ptr<Transport> transport, Route route,
                      const CallSettings& settings, std::shared_ptr<OutgoingRequest> request,
                      std::shared_ptr<SharedMemoryRequest> shared, WeightsCallback on_block,
                      Callback<AttendResult> done) {
  std::make_shared<WeightsCall>(std::move(transport), std::move(route), settings,
                                std::move(request), std::move(shared), std::move(on_block),
                                std::move(done))
      ->Start();
}

}  // namespace attention::client::internal
