#include "client/internal/weights_call.h"

#include <grpcpp/support/client_callback.h>

#include <optional>
#include <utility>

#include "client/internal/convert.h"
#include "client/internal/error_details.h"

namespace attention::client::internal {
namespace {

// There is one request on the stream, so that any id is unique.
constexpr uint64_t kRequestId = 1;

// What all attempts of a call share.
struct WeightsState {
  std::shared_ptr<Transport> transport;
  CallSettings settings;
  v1::AttendStreamRequest request;
  WeightsCallback on_block;
  Route route;
  std::optional<AttendResult> result;
};

// One attempt; deletes itself when gRPC is done with it. gRPC runs at most one of the reactions
// that touch its state at a time, because each read is started by the reaction to the one before.
class WeightsReactor final
    : public grpc::ClientBidiReactor<v1::AttendStreamRequest, v1::AttendStreamResponse> {
 public:
  WeightsReactor(std::shared_ptr<WeightsState> state, std::function<void(AttemptOutcome)> finished)
      : state_(std::move(state)), finished_(std::move(finished)), context_(state_->settings) {}

  void Start(Endpoint& endpoint) {
    endpoint.attention->async()->AttendStream(context_.grpc(), this);
    StartWriteLast(&state_->request, grpc::WriteOptions());
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (absl::Status status = Take(std::move(response_)); !status.ok()) {
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
    // Freed before the caller hears, as the caller may then end the program.
    const std::function<void(AttemptOutcome)> finished = std::move(finished_);
    const bool can_retry = !has_shown_block_;
    delete this;
    finished({.status = std::move(outcome), .can_retry = can_retry});
  }

 private:
  absl::Status Take(v1::AttendStreamResponse&& response) {
    is_complete_ = is_complete_ || response.is_last();
    if (response.has_error()) return FromStreamError(response.error());
    if (response.has_response()) {
      absl::StatusOr<AttendResult> result = FromProto(std::move(*response.mutable_response()));
      if (!result.ok()) return std::move(result).status();
      state_->result = *std::move(result);
    }
    if (response.has_weights()) {
      absl::StatusOr<WeightsBlock> block = FromProto(std::move(*response.mutable_weights()));
      if (!block.ok()) return std::move(block).status();
      has_shown_block_ = true;
      state_->on_block(*std::move(block));
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<WeightsState> state_;
  std::function<void(AttemptOutcome)> finished_;
  CallContext context_;
  v1::AttendStreamResponse response_;
  absl::Status failure_;
  bool has_shown_block_ = false;
  bool is_complete_ = false;
};

}  // namespace

void StartWeightsCall(const std::shared_ptr<Transport>& transport, const CallSettings& settings,
                      v1::AttendRequest request, WeightsCallback on_block,
                      Callback<AttendResult> done) {
  auto state = std::make_shared<WeightsState>();
  state->transport = transport;
  state->settings = settings;
  state->request.set_request_id(kRequestId);
  *state->request.mutable_request() = std::move(request);
  state->on_block = std::move(on_block);
  state->route = transport->AnyTarget();
  if (absl::Status status = transport->CheckSize(state->request.ByteSizeLong()); !status.ok()) {
    return done(std::move(status));
  }
  transport->Retry(
      settings,
      [state](int attempt, std::function<void(AttemptOutcome)> finished) {
        Targets& targets = state->transport->targets();
        (new WeightsReactor(state, std::move(finished)))
            ->Start(targets.EndpointOf(state->route(attempt)));
      },
      [state, done = std::move(done)](absl::Status status) {
        if (!status.ok()) return done(std::move(status));
        done(*std::move(state->result));
      });
}

}  // namespace attention::client::internal
