#include "server/rpc/attend_call.h"

#include <utility>

#include "server/base/status_macros.h"
#include "server/domain/weights_tasks.h"

namespace attention::server {

absl::Status AttendCall::Begin(const CallFrame& frame, const v1::AttendRequest& wire,
                               WeightsForm form, AttentionRequest* request) {
  const auto decode = [&](ResponseAllocator& allocator) -> absl::Status {
    ATTENTION_ASSIGN_OR_RETURN(decoded_, DecodeAttend(wire, form, tensors(), allocator));
    request->tasks = decoded_.tasks;
    for (std::size_t i = 0; i < decoded_.weights.size(); ++i) {
      AddWeightsTasks(decoded_.tasks[i], decoded_.weights[i].floats(), request->weights);
    }
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
  for (std::size_t i = 0; i < decoded_.weights.size(); ++i) {
    v1::WeightsBlock header;
    header.set_sequence(static_cast<int>(i));
    codec::OutgoingMessage block(header);
    decoded_.weights[i].MoveTo(v1::WeightsBlock::kWeightsFieldNumber, block);
    response.Add(v1::AttendResponse::kWeightsFieldNumber, std::move(block));
  }
  return response;
}

}  // namespace attention::server
