// Attention on the processor's cores: SIMD kernels over packed pages (packed_layout.h), chosen at
// run time for the instruction set. Supports every geometry of the contract.
//
// Beyond batch invariance the bits are also the same whether the rows of a prompt arrive together
// or one by one (docs/design/batch-invariance.md).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"

namespace attention::cpu {

// When tasks all of bfloat16 use the dot product instruction of AVX-512. It has twice the rate
// of float32 multiply-adds on AMD's processors (Zen 4 and later) and half of it on Intel's Sapphire
// and Emerald Rapids, where it is not used. The choice is by maker, not by a measurement at start,
// so that a machine gives the same bits every day.
enum class BFloat16Dot { kWhereFaster, kNever, kAlways };

struct CpuBackendOptions {
  int num_threads = 0;              // 0: one per available core, or per CPU of `cpus`
  std::int64_t highway_target = 0;  // a HWY_* target bit, for tests; 0: the best one
  BFloat16Dot bfloat16_dot = BFloat16Dot::kWhereFaster;
  // The CPUs to run on, one thread each, as ThreadPool pins them; the first is left to the thread
  // that calls the backend. Empty: the system places the threads.
  std::vector<int> cpus = {};
};

// INVALID_ARGUMENT for a negative number of threads, one that is not that of `cpus`, and CPUs that
// the process may not run on or that are listed twice; UNIMPLEMENTED for a target that the
// processor or the build lacks.
absl::StatusOr<std::unique_ptr<AttentionBackend>> MakeCpuBackend(const CpuBackendOptions& options);

}  // namespace attention::cpu
