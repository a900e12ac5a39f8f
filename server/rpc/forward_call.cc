#include "server/rpc/forward_call.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/rpc/session_messages.h"

namespace attention::server {
namespace {

// The same error, naming the sequence's session.
absl::Status AtSequence(std::size_t index, const absl::Status& status) {
  return AtSession(absl::StrCat("sessions[", index, "]"), status);
}

}  // namespace

absl::StatusOr<std::vector<StepTarget>> ForwardCall::AcquireSessions(
    const CallFrame& frame, const v1::ForwardRequest& wire) {
  std::vector<StepTarget> targets;
  for (int i = 0; i < wire.sessions_size(); ++i) {
    const v1::LayerSession& session = wire.sessions(i);
    auto lease = services().sessions.Acquire(DecodeHandle(session.handle()), frame.tenant());
    if (!lease.ok()) return AtSequence(static_cast<std::size_t>(i), lease.status());
    targets.push_back(TargetOf(**lease, session.handle().writer(), session.layer()));
    leases_.push_back(*std::move(lease));
  }
  return targets;
}

absl::Status ForwardCall::Begin(const CallFrame& frame, const v1::ForwardRequest& wire,
                                AttentionRequest* request) {
  ATTENTION_ASSIGN_OR_RETURN(layer_, services().layers.Find(frame.tenant(), wire.layer_id()));
  ATTENTION_ASSIGN_OR_RETURN(const std::vector<StepTarget> targets, AcquireSessions(frame, wire));
  const auto decode = [&](ResponseAllocator& allocator) -> absl::Status {
    ATTENTION_ASSIGN_OR_RETURN(decoded_,
                               DecodeForward(wire, *layer_, targets, tensors(), allocator));
    return absl::OkStatus();
  };
  ATTENTION_RETURN_IF_ERROR(Decode(frame, request, decode));
  ForwardGraph& graph = decoded_.graph;
  request->tasks = std::move(graph.tasks);
  request->steps = std::move(graph.steps);
  request->inputs = std::move(graph.inputs);
  request->outputs = std::move(graph.outputs);
  request->projections_owner = layer_;
  services().work_model.Charge(graph.work, tensors().copied_bytes() + decoded_.result_bytes,
                               request->tasks.size() + request->steps.size(), kSequenceCosts,
                               request);
  services().metrics.query_rows.Add(decoded_.num_rows);
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
    if (!result.steps[i].status.ok()) return AtSequence(i, result.steps[i].status);
    small_fields.add_positions(result.steps[i].position);
  }
  ZeroHiddenRows();
  services().metrics.output_bytes.Add(static_cast<std::int64_t>(decoded_.output.size()));
  EncodeTiming(result, small_fields.mutable_timing());
  codec::OutgoingMessage response(small_fields);
  decoded_.output.MoveTo(v1::ForwardResponse::kOutputFieldNumber, response);
  return response;
}

}  // namespace attention::server
