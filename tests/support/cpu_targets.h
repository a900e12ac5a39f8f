// The CPU backend once for each instruction set that this processor and build offer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/api/attention_backend.h"

namespace attention::testing {

struct TargetBackend {
  std::string name;
  std::int64_t highway_target = 0;
  std::unique_ptr<AttentionBackend> backend;
};

// Made once per process, with two threads each. Targets that cannot be had are printed with the
// reason.
const std::vector<TargetBackend>& CpuTargets();

// The best target, with a number of threads.
std::unique_ptr<AttentionBackend> MakeCpu(int num_threads, std::int64_t highway_target = 0);

}  // namespace attention::testing
