#include "tests/parity/tested_backend.h"

namespace attention::testing {

std::vector<ProblemSpec> MixedSpecs(const TestedBackend& tested, int count) {
  std::vector<ProblemSpec> specs;
  for (int i = 0; i < count; ++i) {
    ProblemSpec spec;
    spec.num_kv_heads = 1 + i % 3;
    spec.num_q_heads = spec.num_kv_heads * (1 + i % 5);
    spec.head_dim_qk = 8 + i % 7 * 9;
    spec.head_dim_v = 5 + i % 4 * 16;
    spec.kv_dtype = kKvDTypes[i / 3 % 5];
    spec.dtype = tested.mixed_type(i, spec.kv_dtype);
    spec.kv_len = 1 + i * 37 % tested.mixed.kv_len;
    spec.q_len = i % 2 == 0 ? 1 : 1 + i * 5 % tested.mixed.q_len;
    spec.is_causal = i % 4 != 0;
    spec.window_left = i % 6 == 5 ? 100 : -1;
    spec.sink_tokens = i % 12 == 5 ? 4 : 0;
    spec.soft_cap = i % 8 == 7 ? 10.0f : 0.0f;
    spec.has_alibi = i % 9 == 8;
    spec.has_sink_logits = i % 10 == 9;
    spec.bias = i % 11 == 3 ? BiasOrMask::kPerHead : BiasOrMask::kNone;
    spec.mask = i % 7 == 3 ? BiasOrMask::kShared : BiasOrMask::kNone;
    spec.seed = static_cast<std::uint32_t>(i + 1);
    specs.push_back(spec);
  }
  return specs;
}

}  // namespace attention::testing
