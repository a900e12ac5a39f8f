#include "server/rpc/step_call.h"

#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/rpc/status_mapping.h"
#include "server/rpc/step_decoder.h"
#include "server/rpc/timing_encoder.h"

namespace attention::server {
namespace {

// As many as sequences in an AttendRequest, for the same reason.
constexpr int kMaxSteps = 16384;

codec::OutgoingMessage FailedStep(const absl::Status& status, v1::SessionStepResult result = {}) {
  *result.mutable_error() = ToStreamError(status);
  return codec::OutgoingMessage(result);
}

ResponseTensor ColumnSums(StepOutcome& outcome) {
  if (outcome.column_sums.empty()) return {};
  const auto count = static_cast<std::int64_t>(outcome.column_sums.size());
  return ResponseTensor::Adopt({outcome.kv_len, count / outcome.kv_len},
                               std::move(outcome.column_sums));
}

}  // namespace

SessionHandle DecodeHandle(const v1::SessionHandle& wire) {
  return {wire.worker(), wire.worker_epoch(), wire.session_id()};
}

absl::Status StepCall::Begin(const CallFrame& frame, const v1::StepRequest& wire,
                             AttentionRequest* request) {
  if (wire.steps_size() < 1 || wire.steps_size() > kMaxSteps) {
    return absl::InvalidArgumentError(
        absl::StrCat("steps has ", wire.steps_size(), " entries, expected 1 to ", kMaxSteps));
  }
  try {
    ATTENTION_RETURN_IF_ERROR(BeginSteps(frame, wire, request));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory for the tensors of the request");
  }
  services_.metrics.input_bytes.Add(tensors_.copied_bytes());
  wire_in_ = BeginQueueing(services_, request);
  return absl::OkStatus();
}

absl::Status StepCall::BeginSteps(const CallFrame& frame, const v1::StepRequest& wire,
                                  AttentionRequest* request) {
  entries_.resize(static_cast<std::size_t>(wire.steps_size()));
  for (int i = 0; i < wire.steps_size(); ++i) {
    Entry& entry = entries_[i];
    entry.status = BeginStep(frame, wire.steps(i), &entry, request);
    request->bytes += static_cast<std::int64_t>(entry.output.size() + entry.lse.size());
  }
  request->bytes += tensors_.copied_bytes();
  SetWork(services_, work_, request);
  return absl::OkStatus();
}

absl::Status StepCall::BeginStep(const CallFrame& frame, const v1::SessionStep& wire, Entry* entry,
                                 AttentionRequest* request) {
  ATTENTION_ASSIGN_OR_RETURN(
      SessionLease lease, services_.sessions.Acquire(DecodeHandle(wire.handle()), frame.tenant()));
  ATTENTION_ASSIGN_OR_RETURN(
      DecodedStep decoded,
      DecodeStep(wire, *lease, tensors_, {services_.buffers, services_.limits.max_message_bytes}));
  services_.metrics.query_rows.Add(decoded.step.attend.q_len);
  work_ += decoded.work;
  request->steps.push_back(std::move(decoded.step));
  entry->lease = std::move(lease);
  entry->output = std::move(decoded.output);
  entry->lse = std::move(decoded.lse);
  return absl::OkStatus();
}

codec::OutgoingMessage StepCall::Complete(AttentionResult& result) {
  v1::StepResponse small_fields;
  EncodeTiming(services_, result.timing, wire_in_, tensors_.copied_bytes(),
               small_fields.mutable_timing());
  codec::OutgoingMessage response(small_fields);
  std::size_t next = 0;  // of the steps that took part
  for (Entry& entry : entries_) {
    response.Add(
        v1::StepResponse::kResultsFieldNumber,
        entry.status.ok() ? CompleteStep(entry, result.steps[next++]) : FailedStep(entry.status));
  }
  return response;
}

codec::OutgoingMessage StepCall::CompleteStep(Entry& entry, StepOutcome& outcome) const {
  v1::SessionStepResult result;
  result.set_position(outcome.position);
  result.set_is_replay(outcome.is_replay);
  if (!outcome.status.ok()) return FailedStep(outcome.status, std::move(result));
  services_.metrics.output_bytes.Add(static_cast<std::int64_t>(entry.output.size()));
  codec::OutgoingMessage message(result);
  entry.output.MoveTo(v1::SessionStepResult::kOutputFieldNumber, message);
  entry.lse.MoveTo(v1::SessionStepResult::kLseFieldNumber, message);
  ColumnSums(outcome).MoveTo(v1::SessionStepResult::kColumnSumsFieldNumber, message);
  return message;
}

}  // namespace attention::server
