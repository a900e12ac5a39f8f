// Requests and results of the stateless calls: the words of attention/v1/attention_config.proto and
// attention_service.proto as plain structs. The .proto files hold the full meaning; the comments
// here repeat what a caller needs. Structs are values without locks of their own; every member has
// an initialiser, so that designated initialisers may name any of them without a compiler's
// warning.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "attention/client/tensor.h"

namespace attention::client {

// The computation; the shapes of q, k and v carry the rest: equal counts of query and KV heads are
// multi-head attention, one KV head is multi-query, in between is grouped-query, where query head h
// reads KV head h / (num_q_heads / num_kv_heads). Query i of a sequence stands at
// position(i) = first_query_position + i among its keys.
struct AttentionConfig {
  // Factor of the dot products. Default 1 / sqrt(head_dim_qk). Finite.
  std::optional<float> softmax_scale = {};
  // Scores become soft_cap * tanh(score / soft_cap). 0: no cap. Finite, not negative.
  float soft_cap = 0;
  // A query sees only keys at its own position and before.
  bool is_causal = false;
  // Keys further than this to the left (right) of a query's position are invisible, in tokens.
  // Absent: unbounded. Not negative. A causal sliding window of width w is is_causal with
  // window_left = w - 1; the symmetric one of width w is window_left = window_right = w / 2.
  std::optional<std::int64_t> window_left = {};
  std::optional<std::int64_t> window_right = {};
  // The sequence's first tokens that stay visible past the window's left edge.
  std::int64_t sink_tokens = 0;
  // float32 [num_q_heads]: adds alibi_slopes[h] * (j - position(i)) to the score. Optional.
  TensorView alibi_slopes = {};
  // float32 [num_q_heads]: a logit that joins each row's softmax denominator only. Optional.
  TensorView sink_logits = {};
};

// Results that come back beside the output.
struct ReturnOptions {
  // The natural log of each row's softmax denominator.
  bool lse = false;
  // The attention weights summed over the queries, per key and query head.
  bool column_sums = false;
  // The attention weights of every query, within the answer. Client::AttendWithWeights has them
  // come in blocks, for those that are too large for an answer.
  bool weights = false;
};

// One or many sequences, in one of two forms.
//
// Packed (rank 3): the rows of all sequences one after another.
//   q [sum(q_lens), num_q_heads, head_dim_qk]
//   k [sum(kv_lens), num_kv_heads, head_dim_qk]
//   v [sum(kv_lens), num_kv_heads, head_dim_v]
//   Without q_lens and kv_lens there is one sequence.
// Dense (rank 4): padded to a common length.
//   q [batch, q_len, num_q_heads, head_dim_qk]
//   k [batch, kv_len, num_kv_heads, head_dim_qk]
//   v [batch, kv_len, num_kv_heads, head_dim_v]
//   q_lens and kv_lens, when given, are each sequence's valid rows.
//
// q, k and v share one dtype: float32, float16 or bfloat16.
struct AttendRequest {
  TensorView q = {};
  TensorView k = {};
  TensorView v = {};
  // One entry a sequence, or empty.
  std::vector<std::int64_t> q_lens = {};
  std::vector<std::int64_t> kv_lens = {};
  // Position of each sequence's first query among its keys; empty: kv_len - q_len, which makes the
  // last query the newest token.
  std::vector<std::int64_t> first_query_positions = {};
  AttentionConfig config = {};
  // Added to the scores: [q, kv], [num_q_heads, q, kv] or [sequences, num_q_heads, q, kv], where
  // q = max(q_lens), kv = max(kv_lens). An axis of 1 is shared. Optional.
  TensorView bias = {};
  // kBool of the same shapes, 1 is visible; [sequences, 1, 1, kv] masks keys alone. Optional.
  TensorView mask = {};
  ReturnOptions returns = {};
  // Latent attention: a value is the first head_dim_v elements of its key. v is absent, and
  // head_dim_v given: 1 to 512, at most head_dim_qk.
  bool value_is_key_prefix = false;
  int head_dim_v = 0;
};

// Where a request's time in the server went, from the moment that its whole message had been
// received.
struct Timing {
  // From the queue's door until a worker took it.
  absl::Duration queue = {};
  // Forming and planning the batch it rode in.
  absl::Duration batch_formation = {};
  // Computing that batch.
  absl::Duration compute = {};
  // Requests in that batch, this one included.
  int batch_size = 0;
  // Decoding the message and copying its tensors to where the kernels read them.
  absl::Duration wire_in = {};
  // From the end of the computation until the answer was handed to the transport.
  absl::Duration wire_out = {};
  // Bytes of tensors that the server copied for this request, in and out.
  std::int64_t copied_bytes = 0;
};

struct AttendResult {
  // [sum(q_lens), num_q_heads, head_dim_v] or [batch, q_len, num_q_heads, head_dim_v], in q's
  // dtype.
  Tensor output = {};
  // float32, the shape of output without its last dimension. Absent unless asked for.
  Tensor lse = {};
  // float32 [sum(kv_lens), num_q_heads] or [batch, kv_len, num_q_heads]. Absent unless asked for.
  Tensor column_sums = {};
  // float32 [q_len, num_q_heads, kv_len] of each sequence. Empty unless asked for.
  std::vector<Tensor> weights = {};
  Timing timing = {};
};

// Some rows of the attention weights of one sequence of a request.
struct WeightsBlock {
  // Index of the sequence in the request.
  int sequence = 0;
  // First query row of the block.
  std::int64_t q_begin = 0;
  // float32 [rows, num_q_heads, kv_len].
  Tensor weights = {};
};

}  // namespace attention::client
