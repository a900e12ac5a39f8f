#include "server/rpc/attend_call.h"

#include "server/base/status_macros.h"

namespace attention::server {

absl::Status AttendCall::Begin(const CallFrame& frame, const v1::AttendRequest& wire,
                               bool allows_weights, AttentionRequest* request) {
  const auto decode = [&](ResponseAllocator& allocator) -> absl::Status {
    ATTENTION_ASSIGN_OR_RETURN(decoded_, DecodeAttend(wire, allows_weights, tensors(), allocator));
    request->tasks = decoded_.tasks;
    services().work_model.Charge(decoded_.work, tensors().copied_bytes() + decoded_.result_bytes,
                                 decoded_.tasks.size(), kSequenceCosts, request);
    return absl::OkStatus();
  };
  ATTENTION_RETURN_IF_ERROR(Decode(frame, request, decode));
  for (const AttentionTask& task : decoded_.tasks) services().metrics.query_rows.Add(task.q_len);
  return absl::OkStatus();
}

absl::StatusOr<codec::OutgoingMessage> AttendCall::Complete(const AttentionResult& result) {
  services().metrics.output_bytes.Add(static_cast<std::int64_t>(decoded_.output.size()));
  v1::AttendResponse small_fields;
  EncodeTiming(result, small_fields.mutable_timing());
  codec::OutgoingMessage response(small_fields);
  decoded_.output.MoveTo(v1::AttendResponse::kOutputFieldNumber, response);
  decoded_.lse.MoveTo(v1::AttendResponse::kLseFieldNumber, response);
  decoded_.column_sums.MoveTo(v1::AttendResponse::kColumnSumsFieldNumber, response);
  return response;
}

}  // namespace attention::server
