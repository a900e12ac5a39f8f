// The kernels' arguments: plain structs that lie in device memory. Every pointer is a
// device address.
#pragma once

#include <cstdint>

#include "kernels/api/dtype.h"
#include "kernels/cuda/contract/page_layout.h"

namespace attention::cuda {

// Strides of a bias or mask, in elements.
struct BiasOrMaskStrides {
  std::int64_t head = 0;
  int row = 0;  // at most kv_len
  int key = 0;  // 0 or 1
};

// One sequence; the meaning of each field is that of AttentionTask (kernels/api). Rows of a KV head
// are numbered query * group + (query head within the group), so the queries that share keys share
// a tile.
struct DeviceTask {
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int group = 0;
  int head_dim_qk = 0;
  int head_dim_v = 0;
  float softmax_scale = 0.0f;
  float soft_cap = 0.0f;
  int is_causal = 0;
  std::int64_t window_left = -1;
  std::int64_t window_right = -1;
  std::int64_t sink_tokens = 0;
  std::int64_t first_query_position = 0;
  std::int64_t q_len = 0;
  int kv_len = 0;  // the planner refuses more than 31 bits
  int kv_begin = 0;

  DType q_dtype = DType::kFloat32;
  DType o_dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
  DType bias_dtype = DType::kFloat32;

  const char* q = nullptr;  // [q_len, num_q_heads, PadDim(head_dim_qk)], padded with zeros
  void* o = nullptr;        // [q_len, num_q_heads, head_dim_v]
  float* lse = nullptr;     // [q_len, num_q_heads]; may be null
  // [q_len, num_q_heads, 2], of a task with a second pass: the row's greatest score (or sink
  // logit), and one over the sum of the exponentials relative to it, 0 for no sum. Else null.
  float* totals = nullptr;

  // Token j lies in pages[(j - page_origin) / page_size].
  const char* const* pages = nullptr;
  int page_origin = 0;
  PageLayout layout;

  const float* alibi_slopes = nullptr;  // [num_q_heads], may be null
  const float* sink_logits = nullptr;   // [num_q_heads], may be null
  // [num_q_heads or 1, q_len or 1, kv_len or 1], may be null; the stride of an axis of 1 is 0.
  const void* bias = nullptr;
  BiasOrMaskStrides bias_strides;
  const std::uint8_t* mask = nullptr;  // as bias
  BiasOrMaskStrides mask_strides;

  float* column_sums = nullptr;  // [kv_len, num_q_heads], may be null
  float* weights = nullptr;      // [q_end - q_begin, num_q_heads, kv_len], may be null
  std::int64_t weights_q_begin = 0;
  std::int64_t weights_q_end = 0;
};

// A tile of rows of one KV head, over the keys of one range.
struct WorkItem {
  int task = 0;
  int kv_head = 0;
  std::int64_t row_begin = 0;
  int num_rows = 0;  // at most the kernel's tile
  // Keys [key_begin, key_end), both multiples of every kernel's tile but for the last end.
  int key_begin = 0;
  int key_end = 0;
  // With more than one range each leaves a partial result, and the last block to arrive merges them
  // from left to right.
  int range = 0;
  int num_ranges = 1;
  int counter = 0;            // of arrivals
  std::int64_t partials = 0;  // where the tile's begin, in floats; PartialFloats(tile) each
};

struct AttendArguments {
  const DeviceTask* tasks = nullptr;
  const WorkItem* items = nullptr;  // one a block; of a persistent kernel, each block takes several
  float* partials = nullptr;
  std::uint32_t* counters = nullptr;
  // A persistent kernel's items, and how many of them were taken beside each block's first. The
  // counter is zero when the launch begins.
  int num_items = 0;
  std::uint32_t* num_taken = nullptr;
};

// A partial result: for each row its maximum, its sum, and the unnormalised output.
ATTENTION_HOST_DEVICE int PartialRowFloats(int head_dim_v) { return 2 + head_dim_v; }

// Column sums: keys [key_begin, key_begin + tile) of query head `head`, over all queries. Weights:
// the same keys for a tile of queries.
struct ProbeItem {
  int task = 0;
  int head = 0;
  int key_begin = 0;
  int is_column_sum = 0;
  std::int64_t q_begin = 0;
  std::int64_t q_end = 0;
};

struct ProbeArguments {
  const DeviceTask* tasks = nullptr;
  const ProbeItem* items = nullptr;  // one a block
};

// Rows to write into pages: token position + i receives row i.
struct DeviceAppend {
  int num_kv_heads = 0;
  int head_dim_qk = 0;
  int head_dim_v = 0;
  DType dtype = DType::kFloat32;  // of the pages
  DType k_dtype = DType::kFloat32;
  DType v_dtype = DType::kFloat32;
  const void* k = nullptr;  // [num_tokens, num_kv_heads, head_dim_qk]
  const void* v = nullptr;  // [num_tokens, num_kv_heads, head_dim_v]
  char* const* pages = nullptr;
  PageLayout layout;
  std::int64_t position = 0;  // counted from the first token of pages[0]
};

// Tokens [token_begin, token_end) of one KV head.
struct AppendItem {
  int append = 0;
  int kv_head = 0;
  std::int64_t token_begin = 0;
  std::int64_t token_end = 0;
};

struct AppendArguments {
  const DeviceAppend* appends = nullptr;
  const AppendItem* items = nullptr;  // one a block
};

}  // namespace attention::cuda
