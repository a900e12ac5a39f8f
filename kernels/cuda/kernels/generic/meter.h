// Kernels that measure a device, not use it (ceilings.cu, meter.cu).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace attention::cuda {

// Time as a spin saw it: multiprocessor cycles and nanoseconds.
struct SpinTimes {
  std::uint64_t cycles = 0;
  std::uint64_t nanoseconds = 0;
};

// Reads `bytes` into the L2 cache, to stay there.
cudaError_t LaunchTouch(const void* memory, std::size_t bytes, int num_blocks, float* out,
                        cudaStream_t stream);

// One thread that lets so many nanoseconds pass.
cudaError_t LaunchSpin(std::uint64_t nanoseconds, SpinTimes* times, cudaStream_t stream);

// Reads `bytes` and writes next to nothing: what memory gives to kernels that stream.
cudaError_t LaunchRead(const void* memory, std::size_t bytes, int num_blocks, float* out,
                       cudaStream_t stream);
// `rounds` rounds of 8 independent matrix instructions (m16n8k16, bfloat16) a warp, 8 warps a
// block, and of 8 fused multiply-adds a thread.
cudaError_t LaunchMmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream);
cudaError_t LaunchFmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream);

}  // namespace attention::cuda
