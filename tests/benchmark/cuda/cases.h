// The cases measured on a GPU: batches of sequences, in groups whose members take turns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/api/attention_params.h"

namespace attention::bench {

// Sequences alike in everything but their contents. All are causal by their positions when
// `is_causal` is set, the last query being that of the newest key.
struct Part {
  int batch_size = 1;
  int num_q_heads = 32;
  int num_kv_heads = 8;
  std::int64_t q_len = 1;
  std::int64_t kv_len = 0;
  int head_dim = 128;
  bool is_causal = true;
  std::int64_t window_left = -1;
  std::int64_t shared_len = 0;  // first tokens that all sequences have in common, in the same pages
  DType dtype = DType::kBFloat16;     // of q and o
  DType kv_dtype = DType::kBFloat16;  // of the cache

  AttentionParams params() const;
  // A sequence of it, without tensors.
  AttentionTask Task() const;
};

// One call of the kernels: all sequences of all parts.
struct Case {
  std::string name = {};
  std::vector<Part> parts = {};
  // Cases of the same group that this one is held against: the sum of their best times.
  std::vector<std::string> beside = {};
};

using Group = std::vector<Case>;

// Floating-point operations of the visible pairs, and bytes that must be read or written once: keys
// and values, what is shared counted once, queries and outputs.
struct Work {
  double flops = 0;
  double bytes = 0;
};
Work WorkOf(const Case& bench_case);

// Prefill, decoding, windows, a mixed batch and shared prefixes.
std::vector<Group> AllGroups();

// The kinds of AllGroups in sizes of which a host that plays the device computes all in seconds.
std::vector<Group> SmallGroups();

}  // namespace attention::bench
