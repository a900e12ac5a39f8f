#include "server/rpc/forward_call.h"

#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/rpc/request_timing.h"
#include "server/rpc/step_call.h"

namespace attention::server {
namespace {

// The same error, naming the sequence's session.
absl::Status AtSession(std::size_t index, const absl::Status& status) {
  absl::Status named(status.code(), absl::StrCat("sessions[", index, "]: ", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { named.SetPayload(url, payload); });
  return named;
}

}  // namespace

absl::Status ForwardCall::AcquireSessions(const CallFrame& frame, const v1::ForwardRequest& wire) {
  for (int i = 0; i < wire.sessions_size(); ++i) {
    auto lease =
        services_.sessions.Acquire(DecodeHandle(wire.sessions(i).handle()), frame.tenant());
    if (!lease.ok()) return AtSession(static_cast<std::size_t>(i), lease.status());
    leases_.push_back(*std::move(lease));
  }
  return absl::OkStatus();
}

absl::Status ForwardCall::Begin(const CallFrame& frame, const v1::ForwardRequest& wire,
                                AttentionRequest* request) {
  ATTENTION_ASSIGN_OR_RETURN(layer_, services_.layers.Find(frame.tenant(), wire.layer_id()));
  ATTENTION_RETURN_IF_ERROR(AcquireSessions(frame, wire));
  const auto admit = [&](std::int64_t bytes) {
    return frame.AdmitResults(tensors_.message_bytes(), bytes);
  };
  ResponseAllocator allocator(services_.buffers, services_.limits.max_response_bytes, admit);
  try {
    ATTENTION_ASSIGN_OR_RETURN(decoded_, DecodeForward(wire, layer_, leases_, tensors_, allocator));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory for the tensors of the request");
  }
  request->tasks = std::move(decoded_.tasks);
  request->steps = std::move(decoded_.steps);
  request->inputs = std::move(decoded_.inputs);
  request->outputs = std::move(decoded_.outputs);
  request->projections_owner = layer_;
  SetCosts(services_, decoded_.work, tensors_.copied_bytes() + decoded_.result_bytes,
           request->tasks.size() + request->steps.size(), kSequenceCosts, request);
  services_.metrics.input_bytes.Add(tensors_.copied_bytes());
  services_.metrics.query_rows.Add(decoded_.num_rows);
  wire_in_ = BeginQueueing(services_, request);
  return absl::OkStatus();
}

void ForwardCall::ZeroHiddenRows() {
  if (!decoded_.output.has_value()) return;
  const v1::Tensor& header = decoded_.output.header();
  const std::int64_t row_bytes =
      header.shape(header.shape_size() - 1) * (header.dtype() == v1::DTYPE_FLOAT32 ? 4 : 2);
  for (const auto& [begin, end] : decoded_.hidden_rows) {
    std::memset(decoded_.output.data() + begin * row_bytes, 0,
                static_cast<std::size_t>((end - begin) * row_bytes));
  }
}

absl::StatusOr<codec::OutgoingMessage> ForwardCall::Complete(const AttentionResult& result) {
  v1::ForwardResponse small_fields;
  for (std::size_t i = 0; i < result.steps.size(); ++i) {
    if (!result.steps[i].status.ok()) return AtSession(i, result.steps[i].status);
    small_fields.add_positions(result.steps[i].position);
  }
  ZeroHiddenRows();
  services_.metrics.output_bytes.Add(static_cast<std::int64_t>(decoded_.output.size()));
  FinishTiming(services_, result.timing, wire_in_, tensors_.copied_bytes(),
               small_fields.mutable_timing());
  codec::OutgoingMessage response(small_fields);
  decoded_.output.MoveTo(v1::ForwardResponse::kOutputFieldNumber, response);
  return response;
}

}  // namespace attention::server
