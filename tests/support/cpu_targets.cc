#include "tests/support/cpu_targets.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "hwy/highway.h"
#include "kernels/cpu/cpu_backend.h"

namespace attention::testing {

std::unique_ptr<AttentionBackend> MakeCpu(int num_threads, std::int64_t highway_target) {
  auto backend =
      cpu::MakeCpuBackend({.num_threads = num_threads, .highway_target = highway_target});
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    std::abort();
  }
  return std::move(*backend);
}

const std::vector<TargetBackend>& CpuTargets() {
  static const auto* targets = [] {
    auto* made = new std::vector<TargetBackend>;
    for (std::int64_t target : {HWY_AVX3, HWY_AVX2, HWY_SSE4, HWY_EMU128, HWY_SCALAR}) {
      auto backend = cpu::MakeCpuBackend(
          {.num_threads = 2, .highway_target = target, .bfloat16_dot = cpu::BFloat16Dot::kNever});
      if (backend.ok()) {
        made->push_back({hwy::TargetName(target), target, std::move(*backend)});
      } else {
        std::printf("[  SKIPPED ] target %s: %s\n", hwy::TargetName(target),
                    backend.status().ToString().c_str());
      }
    }
    auto with_dot =
        cpu::MakeCpuBackend({.num_threads = 2, .bfloat16_dot = cpu::BFloat16Dot::kAlways});
    if (with_dot.ok()) {
      made->push_back({"AVX3-dot", HWY_AVX3, std::move(*with_dot)});
    } else {
      std::printf("[  SKIPPED ] %s\n", with_dot.status().ToString().c_str());
    }
    return made;
  }();
  return *targets;
}

}  // namespace attention::testing
