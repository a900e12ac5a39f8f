#include "server/rpc/step_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/rpc/status_mapping.h"
#include "server/rpc/step_decoder.h"
#include "server/rpc/tensor_decoder.h"
#include "server/rpc/timing_encoder.h"

namespace attention::server {
namespace {

// As many as sequences in an AttendRequest, for the same reason.
constexpr int kMaxSteps = 16384;

void EncodeColumnSums(const StepOutcome& outcome, v1::Tensor* wire) {
  const auto count = static_cast<std::int64_t>(outcome.column_sums.size());
  const std::int64_t heads = outcome.kv_len == 0 ? 0 : count / outcome.kv_len;
  wire->set_dtype(v1::DTYPE_FLOAT32);
  wire->add_shape(outcome.kv_len);
  wire->add_shape(heads);
  wire->mutable_data()->assign(reinterpret_cast<const char*>(outcome.column_sums.data()),
                               outcome.column_sums.size() * sizeof(float));
}

void FailStep(const absl::Status& status, v1::SessionStepResult* result) {
  result->clear_output();
  result->clear_lse();
  *result->mutable_error() = ToStreamError(status);
}

}  // namespace

SessionHandle DecodeHandle(const v1::SessionHandle& wire) {
  return {wire.worker(), wire.worker_epoch(), wire.session_id()};
}

absl::Status StepCall::Begin(const ServiceContext& services, const CallFrame& frame,
                             const v1::StepRequest& wire, v1::StepResponse* response,
                             AttentionRequest* request) {
  if (wire.steps_size() < 1 || wire.steps_size() > kMaxSteps) {
    return absl::InvalidArgumentError(
        absl::StrCat("steps has ", wire.steps_size(), " entries, expected 1 to ", kMaxSteps));
  }
  response_ = response;
  for (int i = 0; i < wire.steps_size(); ++i) {
    response->add_results();
  }
  for (int i = 0; i < wire.steps_size(); ++i) {
    v1::SessionStepResult* result = response->mutable_results(i);
    const absl::Status status = BeginStep(services, frame, wire.steps(i), result, request);
    if (!status.ok()) FailStep(status, result);
  }
  request->bytes = static_cast<std::int64_t>(wire.ByteSizeLong() + response->ByteSizeLong());
  services.metrics.input_bytes.Add(static_cast<std::int64_t>(wire.ByteSizeLong()));
  return absl::OkStatus();
}

absl::Status StepCall::BeginStep(const ServiceContext& services, const CallFrame& frame,
                                 const v1::SessionStep& wire, v1::SessionStepResult* result,
                                 AttentionRequest* request) {
  ATTENTION_ASSIGN_OR_RETURN(
      SessionLease lease, services.sessions.Acquire(DecodeHandle(wire.handle()), frame.tenant()));
  ATTENTION_ASSIGN_OR_RETURN(DecodedStep decoded,
                             DecodeStep(wire, *lease, services.limits.max_message_bytes, result));
  services.metrics.query_rows.Add(decoded.step.attend.q_len);
  request->flops += decoded.flops;
  request->steps.push_back(std::move(decoded.step));
  leases_.push_back(std::move(lease));
  results_.push_back(result);
  return absl::OkStatus();
}

void StepCall::Complete(const ServiceContext& services, AttentionResult& result) {
  leases_.clear();
  if (!result.status.ok()) return;
  EncodeTiming(result.timing, response_->mutable_timing());
  for (std::size_t i = 0; i < result.steps.size(); ++i) {
    const StepOutcome& outcome = result.steps[i];
    v1::SessionStepResult* wire = results_[i];
    wire->set_position(outcome.position);
    wire->set_is_replay(outcome.is_replay);
    if (!outcome.status.ok()) {
      FailStep(outcome.status, wire);
      continue;
    }
    services.metrics.output_bytes.Add(static_cast<std::int64_t>(wire->output().data().size()));
    if (!outcome.column_sums.empty()) EncodeColumnSums(outcome, wire->mutable_column_sums());
  }
}

}  // namespace attention::server
