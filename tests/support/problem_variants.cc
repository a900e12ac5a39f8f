#include "tests/support/problem_variants.h"

#include <cstdint>

namespace attention::testing {

std::vector<ProblemSpec> Variants(const ProblemSpec& base) {
  std::vector<ProblemSpec> variants;
  const auto add = [&](auto change) {
    ProblemSpec spec = base;
    change(spec);
    spec.seed = static_cast<std::uint32_t>(variants.size() + 1);
    variants.push_back(spec);
  };
  add([](ProblemSpec&) {});
  add([](ProblemSpec& s) { s.is_causal = true; });
  add([](ProblemSpec& s) { s.is_causal = true, s.first_query_position = 0; });
  add([](ProblemSpec& s) { s.is_causal = true, s.window_left = 20, s.window_right = 0; });
  add([](ProblemSpec& s) { s.window_left = s.window_right = 9; });
  add([](ProblemSpec& s) { s.window_left = 0, s.window_right = 0; });
  add([](ProblemSpec& s) { s.window_right = 3; });
  add([](ProblemSpec& s) { s.is_causal = true, s.window_left = 17, s.sink_tokens = 5; });
  add([](ProblemSpec& s) { s.window_left = s.window_right = 4, s.sink_tokens = 20; });
  add([](ProblemSpec& s) { s.has_sink_logits = true; });
  add([](ProblemSpec& s) { s.has_sink_logits = true, s.is_causal = true; });
  add([](ProblemSpec& s) { s.soft_cap = 2.5f; });
  add([](ProblemSpec& s) { s.soft_cap = 30.0f, s.is_causal = true, s.magnitude = 3; });
  add([](ProblemSpec& s) { s.has_alibi = true, s.is_causal = true; });
  add([](ProblemSpec& s) { s.has_alibi = true; });
  for (BiasOrMask kind : {BiasOrMask::kShared, BiasOrMask::kPerHead}) {
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      add([&](ProblemSpec& s) { s.bias = kind, s.bias_dtype = dtype; });
    }
    add([&](ProblemSpec& s) { s.mask = kind; });
    add([&](ProblemSpec& s) { s.mask = kind, s.is_causal = true, s.window_left = 30; });
  }
  add([](ProblemSpec& s) { s.kv_begin = 11; });
  add([](ProblemSpec& s) { s.kv_begin = 17, s.is_causal = true; });
  add([](ProblemSpec& s) {
    s.kv_begin = 3, s.is_causal = true, s.window_left = 12, s.sink_tokens = 8;
  });
  add([](ProblemSpec& s) { s.first_query_position = -4, s.is_causal = true; });
  add([](ProblemSpec& s) { s.first_query_position = 1000, s.window_left = 30; });
  add([](ProblemSpec& s) {
    s.soft_cap = 5, s.has_alibi = true, s.bias = BiasOrMask::kPerHead, s.mask = BiasOrMask::kShared;
    s.has_sink_logits = true, s.is_causal = true, s.window_left = 25, s.sink_tokens = 4;
  });
  for (BiasOrMask kind : {BiasOrMask::kKeys, BiasOrMask::kQueries, BiasOrMask::kHeads}) {
    add([&](ProblemSpec& s) { s.bias = kind, s.bias_dtype = DType::kBFloat16; });
    add([&](ProblemSpec& s) { s.mask = kind; });
  }
  return variants;
}

}  // namespace attention::testing
