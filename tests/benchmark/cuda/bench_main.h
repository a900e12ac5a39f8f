// The benchmark from its options to its exit status, on whichever device the program has.
#pragma once

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/cuda/device/device.h"
#include "tests/benchmark/cuda/bench_c.h"

namespace attention::bench {

// A program links one of two: the GPU's, or one that the host plays (tests/simt).
absl::StatusOr<std::shared_ptr<cuda::Device>> OpenBenchDevice(int ordinal);

// 0; 1 when a result is wrong or the device fails; 77 with the reason when there is no device.
int BenchMain(int argc, const char* const* argv, std::span<const AttentionBenchPeer> peers);

}  // namespace attention::bench
