#include "tests/benchmark/cuda/cases.h"

#include "kernels/api/work_estimate.h"

namespace attention::bench {
namespace {

std::string Tokens(std::int64_t tokens) {
  return tokens % 1024 == 0 ? std::to_string(tokens / 1024) + "k" : std::to_string(tokens);
}

// 64 query and 8 KV heads, as the large Llama models have.
Part Prefill(std::int64_t tokens, int head_dim, bool is_causal) {
  return {.num_q_heads = 64,
          .num_kv_heads = 8,
          .q_len = tokens,
          .kv_len = tokens,
          .head_dim = head_dim,
          .is_causal = is_causal};
}

Group PrefillGroup(std::int64_t tokens, int head_dim, bool is_causal) {
  return {{.name = "prefill d" + std::to_string(head_dim) + (is_causal ? " causal " : " full ") +
                   Tokens(tokens),
           .parts = {Prefill(tokens, head_dim, is_causal)}}};
}

Group WindowGroup(std::int64_t tokens, int head_dim) {
  Part part = Prefill(tokens, head_dim, true);
  part.window_left = 1023;
  return {{.name = "prefill d" + std::to_string(head_dim) + " window 1k " + Tokens(tokens),
           .parts = {part}}};
}

// 32 query and 8 KV heads of 128; a cache of one byte an element is held against one of two.
Group DecodeGroup(int batch_size, std::int64_t kv_len, const std::vector<DType>& small_types = {}) {
  const Part part = {.batch_size = batch_size, .kv_len = kv_len};
  const std::string name = "decode B" + std::to_string(batch_size) + " " + Tokens(kv_len);
  Group group = {{.name = name, .parts = {part}}};
  for (const DType dtype : small_types) {
    Part small = part;
    small.kv_dtype = dtype;
    group.push_back(
        {.name = name + " " + std::string(DTypeName(dtype)), .parts = {small}, .beside = {name}});
  }
  return group;
}

Group WindowDecodeGroup(int batch_size, std::int64_t kv_len) {
  const Part part = {.batch_size = batch_size, .kv_len = kv_len, .window_left = 1023};
  return {{.name = "decode B" + std::to_string(batch_size) + " window 1k " + Tokens(kv_len),
           .parts = {part}}};
}

// A chunk of a prompt with decoding sequences, in one call and each alone.
Group MixedGroup(const Part& chunk, const Part& steps) {
  const std::string name = "mixed " + Tokens(chunk.q_len) + " + " +
                           std::to_string(steps.batch_size) + " x " + Tokens(steps.kv_len);
  return {{.name = name, .parts = {chunk, steps}, .beside = {name + ", chunk", name + ", steps"}},
          {.name = name + ", chunk", .parts = {chunk}},
          {.name = name + ", steps", .parts = {steps}}};
}

Group SharedGroup(int batch_size, std::int64_t shared_len, std::int64_t own_len) {
  const Part part = {
      .batch_size = batch_size, .kv_len = shared_len + own_len, .shared_len = shared_len};
  return {{.name = "decode B" + std::to_string(batch_size) + " shared " + Tokens(shared_len) +
                   " + " + std::to_string(own_len),
           .parts = {part}}};
}

}  // namespace

AttentionParams Part::params() const {
  AttentionParams params;
  params.num_q_heads = num_q_heads;
  params.num_kv_heads = num_kv_heads;
  params.head_dim_qk = params.head_dim_v = head_dim;
  params.dtype = dtype;
  params.kv_dtype = kv_dtype;
  params.softmax_scale = DefaultSoftmaxScale(head_dim);
  params.is_causal = is_causal;
  params.window_left = window_left;
  return params;
}

AttentionTask Part::Task() const {
  AttentionTask task;
  task.params = params();
  task.q_len = q_len;
  task.kv_len = kv_len;
  task.first_query_position = kv_len - q_len;
  return task;
}

Work WorkOf(const Case& bench_case) {
  Work work;
  for (const Part& part : bench_case.parts) {
    const WorkEstimate one = EstimateWork(part.Task());
    const double tokens = static_cast<double>(part.kv_len) * part.batch_size;
    const double distinct = tokens - static_cast<double>(part.shared_len) * (part.batch_size - 1);
    work.flops += one.flops * part.batch_size;
    work.bytes += part.batch_size * (one.kv_bytes * distinct / tokens + one.io_bytes);
  }
  return work;
}

std::vector<Group> AllGroups() {
  std::vector<Group> groups;
  for (const int k : {2, 4, 8, 16, 32}) {
    groups.push_back(PrefillGroup(1024 * k, 128, /*is_causal=*/true));
    groups.push_back(PrefillGroup(1024 * k, 128, /*is_causal=*/false));
  }
  for (const int head_dim : {64, 256}) {
    for (const int k : {2, 8, 32}) {
      groups.push_back(PrefillGroup(1024 * k, head_dim, /*is_causal=*/true));
      groups.push_back(PrefillGroup(1024 * k, head_dim, /*is_causal=*/false));
    }
  }
  for (const int k : {4, 16, 32}) groups.push_back(WindowGroup(1024 * k, 128));
  groups.push_back(WindowGroup(16384, 64));
  for (const int batch_size : {1, 8, 16, 32, 64}) {
    for (const int k : {1, 4, 16, 32}) {
      const bool has_small = batch_size != 16 && batch_size != 32;
      groups.push_back(DecodeGroup(
          batch_size, 1024 * k,
          has_small ? std::vector{DType::kInt8, DType::kFloat8E4M3} : std::vector<DType>{}));
    }
  }
  groups.push_back(WindowDecodeGroup(64, 16384));
  Part chunk = {.q_len = 2048, .kv_len = 2048};
  for (const int k : {1, 4, 16}) {
    groups.push_back(MixedGroup(chunk, {.batch_size = 63, .kv_len = 1024 * k}));
  }
  groups.push_back(SharedGroup(128, 8192, 256));
  groups.push_back(SharedGroup(128, 32768, 256));
  return groups;
}

std::vector<Group> SmallGroups() {
  Part prefill = {.num_q_heads = 4, .num_kv_heads = 2, .q_len = 150, .kv_len = 150, .head_dim = 64};
  Part window = prefill;
  window.window_left = 40;
  Part full = prefill;
  full.is_causal = false;
  Part steps = {
      .batch_size = 3, .num_q_heads = 4, .num_kv_heads = 2, .kv_len = 300, .head_dim = 64};
  Part small = steps;
  small.kv_dtype = DType::kInt8;
  Part shared = steps;
  shared.shared_len = 128;
  Group mixed = MixedGroup(prefill, steps);
  mixed.push_back({.name = "steps int8", .parts = {small}, .beside = {mixed.back().name}});
  return {{{.name = "full", .parts = {full}}},
          {{.name = "window", .parts = {window}}},
          mixed,
          {{.name = "shared", .parts = {shared}}}};
}

}  // namespace attention::bench
