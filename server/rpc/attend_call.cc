#include "server/rpc/attend_call.h"

#include <new>
#include <utility>

#include "server/rpc/request_timing.h"

namespace attention::server {

absl::Status AttendCall::Begin(const CallFrame& frame, const v1::AttendRequest& wire,
                               bool allows_weights, AttentionRequest* request) {
  const auto admit = [&](std::int64_t bytes) {
    return frame.AdmitResults(tensors_.message_bytes(), bytes);
  };
  ResponseAllocator allocator(services_.buffers, services_.limits.max_response_bytes, admit);
  try {
    auto decoded = DecodeAttend(wire, allows_weights, tensors_, allocator);
    if (!decoded.ok()) return std::move(decoded).status();
    decoded_ = *std::move(decoded);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory for the tensors of the request");
  }
  request->tasks = decoded_.tasks;
  SetCosts(services_, decoded_.work, tensors_.copied_bytes() + decoded_.result_bytes,
           decoded_.tasks.size(), kSequenceCosts, request);
  services_.metrics.input_bytes.Add(tensors_.copied_bytes());
  for (const AttentionTask& task : decoded_.tasks) services_.metrics.query_rows.Add(task.q_len);
  wire_in_ = BeginQueueing(services_, request);
  return absl::OkStatus();
}

codec::OutgoingMessage AttendCall::Complete(const AttentionResult& result) {
  services_.metrics.output_bytes.Add(static_cast<std::int64_t>(decoded_.output.size()));
  v1::AttendResponse small_fields;
  FinishTiming(services_, result.timing, wire_in_, tensors_.copied_bytes(),
               small_fields.mutable_timing());
  codec::OutgoingMessage response(small_fields);
  decoded_.output.MoveTo(v1::AttendResponse::kOutputFieldNumber, response);
  decoded_.lse.MoveTo(v1::AttendResponse::kLseFieldNumber, response);
  decoded_.column_sums.MoveTo(v1::AttendResponse::kColumnSumsFieldNumber, response);
  return response;
}

}  // namespace attention::server
