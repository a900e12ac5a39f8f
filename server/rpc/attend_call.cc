#include "server/rpc/attend_call.h"

#include <new>
#include <utility>

#include "server/rpc/timing_encoder.h"

namespace attention::server {

absl::Status AttendCall::Begin(const v1::AttendRequest& wire, bool allows_weights,
                               AttentionRequest* request) {
  const AttendLimits limits{services_.limits.max_message_bytes, allows_weights};
  try {
    auto decoded = DecodeAttend(wire, limits, tensors_, services_.buffers);
    if (!decoded.ok()) return std::move(decoded).status();
    decoded_ = *std::move(decoded);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory for the tensors of the request");
  }
  request->tasks = decoded_.tasks;
  SetWork(services_, decoded_.work, request);
  const std::int64_t response_bytes = static_cast<std::int64_t>(
      decoded_.output.size() + decoded_.lse.size() + decoded_.column_sums.size());
  request->bytes = tensors_.copied_bytes() + response_bytes;
  services_.metrics.input_bytes.Add(tensors_.copied_bytes());
  for (const AttentionTask& task : decoded_.tasks) services_.metrics.query_rows.Add(task.q_len);
  wire_in_ = BeginQueueing(services_, request);
  return absl::OkStatus();
}

codec::OutgoingMessage AttendCall::Complete(const AttentionResult& result) {
  decoded_.CopyLse();
  services_.metrics.output_bytes.Add(static_cast<std::int64_t>(decoded_.output.size()));
  v1::AttendResponse small_fields;
  EncodeTiming(services_, result.timing, wire_in_, tensors_.copied_bytes(),
               small_fields.mutable_timing());
  codec::OutgoingMessage response(small_fields);
  decoded_.output.MoveTo(v1::AttendResponse::kOutputFieldNumber, response);
  decoded_.lse.MoveTo(v1::AttendResponse::kLseFieldNumber, response);
  decoded_.column_sums.MoveTo(v1::AttendResponse::kColumnSumsFieldNumber, response);
  return response;
}

}  // namespace attention::server
