#include "server/rpc/step_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/at_field.h"
#include "server/base/status_macros.h"
#include "server/rpc/session_messages.h"
#include "server/rpc/status_mapping.h"
#include "server/wire/step_decoder.h"

namespace attention::server {
namespace {

// The limit is that of sequences in an AttendRequest, for the same reason.
constexpr int kMaxSteps = 16384;

codec::OutgoingMessage FailedStep(const absl::Status& status, v1::SessionStepResult result = {}) {
  *result.mutable_error() = ToStreamError(status);
  return codec::OutgoingMessage(result);
}

// A step's error with the path of its field from the request on.
absl::Status AtStep(std::size_t index, const absl::Status& status) {
  if (status.code() != absl::StatusCode::kInvalidArgument) return status;
  return AtField(absl::StrCat("steps[", index, "]"), status);
}

}  // namespace

absl::Status StepCall::Begin(const CallFrame& frame, const v1::StepRequest& wire,
                             AttentionRequest* request) {
  if (wire.steps_size() < 1 || wire.steps_size() > kMaxSteps) {
    return absl::InvalidArgumentError(
        absl::StrCat("steps has ", wire.steps_size(), " entries, expected 1 to ", kMaxSteps));
  }
  return Decode(frame, request, [&](ResponseAllocator& allocator) {
    return BeginSteps(frame, wire, allocator, request);
  });
}

absl::Status StepCall::BeginSteps(const CallFrame& frame, const v1::StepRequest& wire,
                                  ResponseAllocator& allocator, AttentionRequest* request) {
  entries_.resize(static_cast<std::size_t>(wire.steps_size()));
  for (int i = 0; i < wire.steps_size(); ++i) {
    Entry& entry = entries_[i];
    entry.status = BeginStep(frame, wire.steps(i), allocator.budget(), &entry, request);
  }
  ATTENTION_RETURN_IF_ERROR(allocator.Admit());
  charge_ = allocator.charge();
  std::size_t next = 0;  // of the steps that take part
  for (Entry& entry : entries_) {
    if (!entry.status.ok()) continue;
    AllocateResult(allocator, request->steps[next++], entry.output, entry.lse);
  }
  services().work_model.Charge(work_, tensors().copied_bytes() + allocator.budget().bytes(),
                               entries_.size(), kStepCosts, request);
  return absl::OkStatus();
}

absl::Status StepCall::BeginStep(const CallFrame& frame, const v1::SessionStep& wire,
                                 ResponseBudget& budget, Entry* entry, AttentionRequest* request) {
  ATTENTION_ASSIGN_OR_RETURN(
      SessionLease lease, services().sessions.Acquire(DecodeHandle(wire.handle()), frame.tenant()));
  StepTarget target = TargetOf(*lease, wire.handle().writer(), wire.layer());
  target.length += num_tokens_;
  ATTENTION_ASSIGN_OR_RETURN(DecodedStep decoded, DecodeStep(wire, target, tensors(), budget));
  SessionStep& step = decoded.step;
  if (step.attend) {
    const AttentionTask& task = step.attend->task;
    services().metrics.query_rows.Add(task.q_len);
    if (step.attend->max_column_sum_bytes) entry->num_column_sum_heads = task.params.num_q_heads;
    if (step.attend->max_weight_bytes) entry->num_weight_heads = task.params.num_q_heads;
    entry->q_len = task.q_len;
  }
  work_ += decoded.work;
  num_tokens_ += step.num_tokens();
  step.work = services().work_model.PartWork(decoded.work, kStepCosts);
  request->steps.push_back(std::move(step));
  entry->lease = std::move(lease);
  entry->output = std::move(decoded.output);
  entry->lse = std::move(decoded.lse);
  return absl::OkStatus();
}

absl::StatusOr<codec::OutgoingMessage> StepCall::Complete(AttentionResult& result) {
  v1::StepResponse small_fields;
  EncodeTiming(result, small_fields.mutable_timing());
  codec::OutgoingMessage response(small_fields);
  std::size_t next = 0;  // of the steps that took part
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const bool took_part = entries_[i].status.ok();
    response.Add(v1::StepResponse::kResultsFieldNumber,
                 took_part ? CompleteStep(i, result.steps[next++])
                           : FailedStep(AtStep(i, entries_[i].status)));
  }
  return response;
}

codec::OutgoingMessage StepCall::CompleteStep(std::size_t index, StepOutcome& outcome) {
  Entry& entry = entries_[index];
  v1::SessionStepResult result;
  result.set_position(outcome.position);
  result.set_is_replay(outcome.is_replay);
  if (!outcome.status.ok()) return FailedStep(AtStep(index, outcome.status), std::move(result));
  services().metrics.output_bytes.Add(static_cast<std::int64_t>(entry.output.size()));
  codec::OutgoingMessage message(result);
  entry.output.MoveTo(v1::SessionStepResult::kOutputFieldNumber, message);
  entry.lse.MoveTo(v1::SessionStepResult::kLseFieldNumber, message);
  if (entry.num_column_sum_heads > 0) {
    ResponseTensor::Adopt({outcome.kv_len, entry.num_column_sum_heads},
                          std::move(outcome.column_sums), charge_)
        .MoveTo(v1::SessionStepResult::kColumnSumsFieldNumber, message);
  }
  if (entry.num_weight_heads > 0) {
    ResponseTensor::Adopt({entry.q_len, entry.num_weight_heads, outcome.kv_len},
                          std::move(outcome.weights), charge_)
        .MoveTo(v1::SessionStepResult::kWeightsFieldNumber, message);
  }
  return message;
}

}  // namespace attention::server
