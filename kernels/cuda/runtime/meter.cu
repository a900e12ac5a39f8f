#include <cuda_runtime.h>

#include "kernels/cuda/runtime/meter_kernels.h"

namespace attention::cuda {
namespace {

// Ordinary loads: those that are marked for streaming make room for each other first, and what the
// cache held before would stay.
__global__ void Touch(const uint4* memory, std::size_t count, float* out) {
  std::uint32_t bits = 0;
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const uint4 word = __ldcg(memory + i);
    bits |= word.x ^ word.y ^ word.z ^ word.w;
  }
  // Never so, but the compiler cannot know.
  if (bits == 0x9e3779b9u) out[0] = 1.0f;
}

__device__ std::uint64_t Nanoseconds() {
  std::uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time)::"memory");
  return time;
}

__global__ void Spin(std::uint64_t nanoseconds, SpinTimes* times) {
  const std::uint64_t begin = Nanoseconds();
  const long long first_cycle = clock64();
  std::uint64_t now = begin;
  while (now - begin < nanoseconds) now = Nanoseconds();
  times->cycles = static_cast<std::uint64_t>(clock64() - first_cycle);
  times->nanoseconds = now - begin;
}

}  // namespace

cudaError_t LaunchTouch(const void* memory, std::size_t bytes, int num_blocks, float* out,
                        cudaStream_t stream) {
  Touch<<<num_blocks, 512, 0, stream>>>(static_cast<const uint4*>(memory), bytes / 16, out);
  return cudaGetLastError();
}

cudaError_t LaunchSpin(std::uint64_t nanoseconds, SpinTimes* times, cudaStream_t stream) {
  Spin<<<1, 1, 0, stream>>>(nanoseconds, times);
  return cudaGetLastError();
}

}  // namespace attention::cuda
