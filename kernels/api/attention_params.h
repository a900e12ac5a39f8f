// The meaning of one attention computation, as plain structs. Backends trust them: they were
// checked by ValidateTask (validate.h), which the backends' Plan calls and whose errors name the
// field.
//
// For each sequence, with position(i) = first_query_position + i and h reading KV head
// h / (num_q_heads / num_kv_heads):
//
//   s[i,j]  = softmax_scale * <q_i, k_j>
//   s       = soft_cap * tanh(s / soft_cap)            if soft_cap > 0
//   s      += alibi_slopes[h] * (j - position(i))      if given   (Press et al. 2022)
//   s      += bias[h, i, j]                            if given
//   visible = kv_begin <= j < kv_len
//             and (not is_causal or j <= position(i))
//             and (window_left < 0 or j >= position(i) - window_left or j < sink_tokens)
//             and (window_right < 0 or j <= position(i) + window_right)
//             and (no mask or mask[h, i, j])
//   lse[i]  = log(sum over visible j of exp(s[i,j]) [+ exp(sink_logits[h])])   natural log
//   o_i     = sum over visible j of exp(s[i,j] - lse[i]) v_j
//
// With a tree of drafts (AttentionTask::tree) the keys from first_query_position on are those of
// the queries themselves, one each. position(i) is first_query_position + the depth of row i then,
// key first_query_position + i has that position in place of its j above, but for kv_begin, kv_len,
// bias and mask, and only the rows that row i descends from, and row i, see it.
//
// A row with nothing visible gives o = 0 and, without sink_logits, lse = -inf. A score of -inf
// makes its key invisible. Elements of invisible keys are never used, NaN included.
//
// Scores are float32. A finite one counts as what it is, whatever its magnitude: equal scores weigh
// alike, and weights add up to 1 whatever lse is. A finite bias or slope never makes an infinite
// score of a finite one: the sum stays at the type's largest or smallest number. Infinite or NaN
// are only scores of elements that are, or of products that float32 does not hold, and with them
// the row is NaN (but for keys of -inf); so it is with a sink logit of +inf or NaN.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/api/draft_tree.h"
#include "kernels/api/dtype.h"
#include "kernels/api/paged_kv_view.h"
#include "kernels/api/tensor_view.h"

namespace attention {

// Latent attention has 576 and 512, the widest heads of other models 512 and 512.
inline constexpr int kMaxHeadDimQk = 576;
inline constexpr int kMaxHeadDimV = 512;
inline constexpr int kMaxHeads = 1 << 16;
// Positions and lengths stay below this, so that no sum of a few of them can overflow.
inline constexpr std::int64_t kMaxPosition = std::int64_t{1} << 40;

// The computation, without data. Two requests with equal params may share a kernel launch.
struct AttentionParams {
  int num_q_heads = 0;
  int num_kv_heads = 0;              // divides num_q_heads
  int head_dim_qk = 0;               // 1..kMaxHeadDimQk
  int head_dim_v = 0;                // 1..kMaxHeadDimV
  DType dtype = DType::kFloat32;     // of q and o
  DType kv_dtype = DType::kFloat32;  // of k and v as stored
  float softmax_scale = 0.0f;        // resolved: DefaultSoftmaxScale when the caller gave none
  float soft_cap = 0.0f;             // 0: none
  bool is_causal = false;
  std::int64_t window_left = -1;     // negative: unbounded
  std::int64_t window_right = -1;    // negative: unbounded
  std::int64_t sink_tokens = 0;      // first tokens that stay visible past the window's left edge
  bool value_is_key_prefix = false;  // see KvGeometry; head_dim_v <= head_dim_qk then
  bool is_tree = false;              // the queries are drafts, see AttentionTask::tree

  bool operator==(const AttentionParams&) const = default;

  int group_size() const { return num_q_heads / num_kv_heads; }
  KvGeometry kv_geometry() const {
    return {num_kv_heads, head_dim_qk, head_dim_v, kv_dtype, value_is_key_prefix};
  }
};

float DefaultSoftmaxScale(int head_dim_qk);  // 1 / sqrt(head_dim_qk)

// One sequence. Its KV is either contiguous (k and v) or paged (kv_pages.pages not null).
struct AttentionTask {
  AttentionParams params;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  std::int64_t kv_begin = 0;              // keys before it are invisible
  std::int64_t first_query_position = 0;  // kv_len - q_len aligns the last query to the newest key

  RowsView q;  // [q_len, num_q_heads, head_dim_qk]
  RowsView k;  // [kv_len, num_kv_heads, head_dim_qk]
  RowsView v;  // [kv_len, num_kv_heads, head_dim_v]; none if values are prefixes of the keys
  PagedKvView kv_pages;

  const float* alibi_slopes = nullptr;  // [num_q_heads], may be null
  const float* sink_logits = nullptr;   // [num_q_heads], may be null
  BiasView bias;                        // [num_q_heads, q_len, kv_len], may be null
  MaskView mask;                        // [num_q_heads, q_len, kv_len], may be null
  // Given if params.is_tree, and kv_len is first_query_position + q_len then.
  DraftTreeView tree = {};

  MutableRowsView o;             // [q_len, num_q_heads, head_dim_v]
  float* lse = nullptr;          // [q_len, num_q_heads], may be null
  float* column_sums = nullptr;  // [kv_len, num_q_heads], sum over queries of p; may be null

  std::int64_t position(std::int64_t query) const {
    return first_query_position + (tree.has_rows() ? tree.depths[query] : query);
  }
  bool IsDraft(std::int64_t key) const { return tree.has_rows() && key >= first_query_position; }
  std::int64_t key_position(std::int64_t key) const {
    return IsDraft(key) ? position(key - first_query_position) : key;
  }
};

// A block of attention weights. Rows add up to 1, but for the share of a sink logit; an lse of
// float32 would not have the digits for it, and is not used.
struct WeightsTask {
  AttentionTask attention;  // o, lse and column_sums are not used
  std::int64_t q_begin = 0;
  std::int64_t q_end = 0;
  float* weights = nullptr;  // [q_end - q_begin, num_q_heads, kv_len]
};

// The half-open interval of keys that causality, window and kv_begin leave visible to the query at
// `position`; keys in [kv_begin, min(sink_tokens, end)) are visible too. Empty when begin >= end.
// With a tree all drafts are in it; SeesDraft tells which of them are visible.
struct VisibleKeys {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t sink_end =
      0;  // sinks are [kv_begin, sink_end), sink_end <= begin; none if <= kv_begin
};
inline VisibleKeys VisibleKeysOf(const AttentionTask& task, std::int64_t position) {
  const AttentionParams& params = task.params;
  VisibleKeys keys{task.kv_begin, task.kv_len, task.kv_begin};
  if (params.is_causal) keys.end = std::min(keys.end, position + 1);
  if (params.window_right >= 0) keys.end = std::min(keys.end, position + params.window_right + 1);
  if (task.tree.has_rows()) keys.end = task.kv_len;
  keys.end = std::max(keys.end, task.kv_begin);
  if (params.window_left >= 0) {
    std::int64_t begin = position - params.window_left;
    if (task.tree.has_rows()) begin = std::min(begin, task.first_query_position);
    keys.begin = std::max(keys.begin, begin);
  }
  keys.begin = std::min(keys.begin, keys.end);
  keys.sink_end = std::max(task.kv_begin, std::min(params.sink_tokens, keys.begin));
  return keys;
}

// True if the row of a tree sees the key of row `draft`, which is one of its ancestors or itself,
// and no further away than its window reaches.
inline bool SeesDraft(const AttentionTask& task, std::int64_t query, std::int64_t draft) {
  if (!task.tree.IsAncestor(query, draft)) return false;
  const AttentionParams& params = task.params;
  const std::int64_t position = task.position(draft);
  return params.window_left < 0 || position >= task.position(query) - params.window_left ||
         position < params.sink_tokens;
}

}  // namespace attention
