// The CUDA backend, its kernels executed on the host (tests/simt) or on a GPU (cuda_backends.h).
#include "tests/parity/tested_backend.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"

namespace attention::testing {
namespace {

const std::vector<TargetBackend>& Targets() {
  static const auto* targets = [] {
    auto* made = new std::vector<TargetBackend>;
    made->push_back({"cuda", 0, MakeCuda()});
    return made;
  }();
  return *targets;
}

std::unique_ptr<AttentionBackend> Make(const TargetBackend&) { return MakeCuda(); }

// Which block comes last to a merge, and which warp first to a barrier, is drawn from the seed.
std::vector<std::unique_ptr<AttentionBackend>> MakeInOtherOrders() {
  std::vector<std::unique_ptr<AttentionBackend>> backends;
  for (std::uint32_t seed : {2u, 3u, 4u}) backends.push_back(MakeCuda(seed));
  return backends;
}

}  // namespace

const TestedBackend& Tested() {
  static const TestedBackend tested = {
      .name = "Cuda",
      .targets = Targets,
      .make = Make,
      .make_in_other_orders = MakeInOtherOrders,
      .query_type = RowTypeFor,
      .mixed_type =
          [](int index, DType kv_dtype) {
            return index % 4 == 0 ? kDTypes[index % 3] : RowTypeFor(kv_dtype);
          },
      .edges = {0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257, 700},
      .prefill = {.q_len = 300, .kv_len = 700},
      .mixed = {.q_len = 60, .kv_len = 700},
      .ranges_kv_len = 550,
      .merged_specs = {{.num_q_heads = 4,
                        .num_kv_heads = 1,
                        .dtype = DType::kBFloat16,
                        .kv_dtype = DType::kBFloat16,
                        .q_len = 1,
                        .kv_len = 3000}},
      // Chunks of more than kMaxSplitRows rows.
      .prefill_cuts = {0, 50, 145, 256, 311, 400},
      .peaked_cuts = {0, 65, 140, 230},
      .peaked_magnitude = 15,
      // Decoding over several ranges, and prefill.
      .exact_lengths = {{.q_len = 1, .kv_len = 300}, {.q_len = 20, .kv_len = 70}},
      .num_drawn = 60,
      .exact_projections = {{1, 64, 64}, {7, 96, 50}, {33, 130, 96}, {40, 257, 19}, {5, 1, 1}},
      .projection_types = {{DType::kFloat32, DType::kFloat32},
                           {DType::kBFloat16, DType::kBFloat16},
                           {DType::kBFloat16, DType::kFloat32},
                           {DType::kFloat16, DType::kFloat32}},
      .projection_shapes = {{64, 64}, {200, 96}, {30, 50}, {100, 48}},
      .projection_rows = 77,
      .rotary_error = 2e-6f,
  };
  return tested;
}

}  // namespace attention::testing
