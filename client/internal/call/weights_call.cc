#include "client/internal/call/weights_call.h"

#include <grpcpp/support/client_callback.h>

#include <optional>
#include <utility>

#include "attention/v1/attention_service.pb.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {
namespace {

// There is one request on the stream, so that any id is unique.
constexpr uint64_t kRequestId = 1;

// What all attempts of a call share.
struct WeightsState {
  std::shared_ptr<Transport> transport;
  CallSettings settings;
  std::shared_ptr<OutgoingRequest> request;
  WeightsCallback on_block;
  Route route;
  std::optional<AttendResult> result;
};

// One attempt; deletes itself when gRPC is done with it. gRPC runs at most one of the reactions
// that touch its state at a time, because each read is started by the reaction to the one before.
class WeightsReactor final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  WeightsReactor(std::shared_ptr<WeightsState> state, std::function<void(AttemptOutcome)> finished)
      : state_(std::move(state)), finished_(std::move(finished)), context_(state_->settings) {}

  // Begins an attempt at the target.
  static void Begin(const std::shared_ptr<WeightsState>& state, size_t target,
                    std::function<void(AttemptOutcome)> finished) {
    absl::StatusOr<grpc::ByteBuffer> bytes = state->transport->Serialize(*state->request, target);
    if (!bytes.ok()) return finished({.status = std::move(bytes).status(), .can_retry = false});
    auto* reactor = new WeightsReactor(state, std::move(finished));
    reactor->target_ = target;
    reactor->bytes_ = *std::move(bytes);
    reactor->Start(state->transport->targets().EndpointOf(target));
  }

  void Start(Endpoint& endpoint) {
    endpoint.stub.PrepareBidiStreamingCall(context_.grpc(),
                                           ATTN_METHOD(AttentionService, AttendStream), {}, this);
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
    if (outcome.ok() && !(is_complete_ && state_->result.has_value())) {
      outcome = absl::InternalError("the server ended the stream before the result was complete");
    }
    state_->request->OnOutcome(outcome);
    // Freed before the caller hears, as the caller may then end the program.
    std::function<void(AttemptOutcome)> finished = std::move(finished_);
    const std::shared_ptr<WeightsState> state = state_;
    const bool can_retry = !has_shown_block_;
    const size_t target = target_;
    delete this;
    if (can_retry && state->request->TakeBackIfLost(outcome, target)) {
      return Begin(state, target, std::move(finished));
    }
    finished({.status = std::move(outcome), .can_retry = can_retry});
  }

 private:
  absl::Status Take(const v1::AttendStreamResponse& response,
                    const codec::ReceivedMessage& received) {
    is_complete_ = is_complete_ || response.is_last();
    if (response.has_error()) return FromStreamError(response.error());
    if (response.has_response()) {
      absl::StatusOr<AttendResult> result =
          FromWire(response.response(), received, state_->request->refs().get());
      if (!result.ok()) return std::move(result).status();
      state_->result = *std::move(result);
    }
    if (response.has_weights()) {
      absl::StatusOr<WeightsBlock> block = FromWire(response.weights(), received);
      if (!block.ok()) return std::move(block).status();
      has_shown_block_ = true;
      state_->on_block(*std::move(block));
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<WeightsState> state_;
  std::function<void(AttemptOutcome)> finished_;
  CallContext context_;
  size_t target_ = 0;
  grpc::ByteBuffer bytes_;
  grpc::ByteBuffer response_;
  absl::Status failure_;
  bool has_shown_block_ = false;
  bool is_complete_ = false;
};

}  // namespace

absl::StatusOr<codec::OutgoingMessage> WeightsRequest(const AttendRequest& request,
                                                      const SharedTensorRefs* refs) {
  ATTN_ASSIGN_OR_RETURN(codec::OutgoingMessage wire, ToWire(request, /*weights=*/true, refs));
  v1::AttendStreamRequest small_fields;
  small_fields.set_request_id(kRequestId);
  codec::OutgoingMessage message(small_fields);
  message.Add(v1::AttendStreamRequest::kRequestFieldNumber, std::move(wire));
  return message;
}

void StartWeightsCall(const std::shared_ptr<Transport>& transport, Route route,
                      const CallSettings& settings, std::shared_ptr<OutgoingRequest> request,
                      WeightsCallback on_block, Callback<AttendResult> done) {
  auto state = std::make_shared<WeightsState>();
  state->transport = transport;
  state->settings = settings;
  state->request = std::move(request);
  state->on_block = std::move(on_block);
  state->route = std::move(route);
  KeepCallbackThreads();
  transport->Retry(
      settings,
      [state](int attempt, std::function<void(AttemptOutcome)> finished) {
        WeightsReactor::Begin(state, state->route(attempt), std::move(finished));
      },
      [state, done = std::move(done)](absl::Status status) {
        if (!status.ok()) return done(std::move(status));
        done(*std::move(state->result));
      });
}

}  // namespace attention::client::internal
