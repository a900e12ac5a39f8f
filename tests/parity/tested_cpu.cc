// The CPU backend, on every instruction set that the processor has.
#include "tests/parity/tested_backend.h"

namespace attention::testing {
namespace {

std::unique_ptr<AttentionBackend> Make(const TargetBackend& target) {
  return MakeCpu(1, target.highway_target);
}

std::vector<std::unique_ptr<AttentionBackend>> MakeInOtherOrders() {
  std::vector<std::unique_ptr<AttentionBackend>> backends;
  for (int threads : {1, 2, 5}) backends.push_back(MakeCpu(threads));
  return backends;
}

}  // namespace

const TestedBackend& Tested() {
  static const TestedBackend tested = {
      .name = "Cpu",
      .targets = CpuTargets,
      .make = Make,
      .make_in_other_orders = MakeInOtherOrders,
      .query_type = [](DType) { return DType::kFloat32; },
      .mixed_type = [](int index, DType) { return kDTypes[index % 3]; },
      .edges = {0, 1, 15, 16, 17, 31, 97, 511, 512, 513, 1100},
      .prefill = {.q_len = 600, .kv_len = 1100},
      .mixed = {.q_len = 40, .kv_len = 1300},
      .ranges_kv_len = 1050,
      .merged_specs = {{.num_q_heads = 4, .num_kv_heads = 1, .q_len = 1, .kv_len = 9000},
                       {.num_q_heads = 16,
                        .num_kv_heads = 1,
                        .q_len = 40,
                        .kv_len = 5000,
                        .is_causal = true,
                        .window_left = 700,
                        .sink_tokens = 20,
                        .has_sink_logits = true},
                       {.num_q_heads = 6, .q_len = 150, .kv_len = 1300, .is_causal = true}},
      .prefill_cuts = {0, 1, 2, 100, 356, 512, 699, 700},
      .peaked_cuts = {0, 1, 2, 3, 40, 41, 599, 600},
      .peaked_magnitude = 35,
      .exact_lengths = {{.q_len = 3, .kv_len = 3}, {.q_len = 3, .kv_len = 1100}},
      .num_drawn = 120,
      .exact_projections =
          {{1, 64, 64}, {7, 96, 50}, {33, 130, 384}, {70, 257, 19}, {5, 1, 1}, {300, 64, 300}},
      .projection_types = {{DType::kFloat32, DType::kFloat32}},
      .projection_shapes = {{64, 64}, {576, 960}, {768, 768}, {1000, 96}, {30, 50}, {2048, 272}},
      .projection_rows = 301,
  };
  return tested;
}

}  // namespace attention::testing
