#include "client/loadgen/attention_case.h"

#include "absl/strings/str_cat.h"
#include "kernels/api/work_estimate.h"

namespace attention::loadgen {
namespace {

// Tokens to the left and right of a query that it sees; negative: all.
struct Window {
  std::int64_t left = -1;
  std::int64_t right = -1;
};

Window WindowOf(const ShapeOptions& shape) {
  if (shape.window == 0) return {};
  if (shape.is_causal) return {.left = shape.window - 1, .right = 0};
  return {.left = shape.window / 2, .right = shape.window / 2};
}

}  // namespace

void Work::Add(const Work& other) {
  tokens += other.tokens;
  flops += other.flops;
  bytes_sent += other.bytes_sent;
  bytes_received += other.bytes_received;
}

client::AttentionConfig ConfigOf(const ShapeOptions& shape) {
  client::AttentionConfig config;
  config.is_causal = shape.is_causal;
  const Window window = WindowOf(shape);
  if (window.left >= 0) config.window_left = window.left;
  if (window.right >= 0) config.window_right = window.right;
  return config;
}

AttentionTask TaskOf(const AttentionCase& request) {
  const ShapeOptions& shape = request.shape;
  const Window window = WindowOf(shape);
  AttentionTask task;
  task.params = {.num_q_heads = shape.num_q_heads,
                 .num_kv_heads = shape.num_kv_heads,
                 .head_dim_qk = shape.head_dim_qk,
                 .head_dim_v = shape.head_dim_v,
                 .dtype = shape.dtype,
                 .kv_dtype = shape.kv_dtype.value_or(shape.dtype),
                 .softmax_scale = DefaultSoftmaxScale(shape.head_dim_qk),
                 .is_causal = shape.is_causal,
                 .window_left = window.left,
                 .window_right = window.right};
  task.q_len = shape.q_len;
  task.kv_len = shape.kv_len;
  task.first_query_position = shape.kv_len - shape.q_len;
  return task;
}

Work WorkOf(const AttentionCase& request, std::int64_t kv_rows_sent) {
  const ShapeOptions& shape = request.shape;
  const auto element_bytes = static_cast<std::int64_t>(DTypeBytes(shape.dtype));
  const std::int64_t sent =
      shape.q_len * request.q_row() + kv_rows_sent * (request.k_row() + request.v_row());
  const std::int64_t received = shape.q_len * shape.num_q_heads * shape.head_dim_v;
  return {.tokens = shape.q_len,
          .flops = EstimateWork(TaskOf(request)).flops,
          .bytes_sent = sent * element_bytes,
          .bytes_received = received * element_bytes};
}

std::string Describe(const AttentionCase& request) {
  const ShapeOptions& shape = request.shape;
  return absl::StrCat(
      "q_len=", shape.q_len, " kv_len=", shape.kv_len, " num_q_heads=", shape.num_q_heads,
      " num_kv_heads=", shape.num_kv_heads, " head_dim_qk=", shape.head_dim_qk,
      " head_dim_v=", shape.head_dim_v, " dtype=", std::string(DTypeName(shape.dtype)),
      " kv_dtype=", std::string(DTypeName(shape.kv_dtype.value_or(shape.dtype))),
      " causal=", shape.is_causal ? 1 : 0, " window=", shape.window, " layer=", request.layer,
      " pool offsets q=", request.q_offset, " k=", request.k_offset, " v=", request.v_offset);
}

}  // namespace attention::loadgen
