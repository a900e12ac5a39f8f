// Kernels that measure a device, not use it (ceilings.cu, meter.cu, sm90_meter.cu).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace attention::cuda {

// What a spin saw of the time: multiprocessor cycles and nanoseconds.
struct SpinTimes {
  std::uint64_t cycles = 0;
  std::uint64_t nanoseconds = 0;
};

// Reads `bytes` into the L2 cache, to stay there.
cudaError_t LaunchTouch(const void* memory, std::size_t bytes, int num_blocks, float* out,
                        cudaStream_t stream);

// One thread that lets so many nanoseconds pass.
cudaError_t LaunchSpin(std::uint64_t nanoseconds, SpinTimes* times, cudaStream_t stream);

// Products of warpgroups on random operands in shared memory, `rounds` rounds of kWgmmaRoundFlops
// in each block; a block fills a multiprocessor. Of compute capability 9.0.
inline constexpr double kWgmmaRoundFlops = 2.0 * 2 * 64 * 128 * 256;  // m64n128 twice, 256 deep
cudaError_t LaunchWgmmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream);

}  // namespace attention::cuda
