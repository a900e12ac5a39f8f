#include <cuda_runtime.h>

#include "kernels/cuda/kernels/generic/meter.h"

namespace attention::cuda {
namespace {

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

cudaError_t LaunchSpin(std::uint64_t nanoseconds, SpinTimes* times, cudaStream_t stream) {
  Spin<<<1, 1, 0, stream>>>(nanoseconds, times);
  return cudaGetLastError();
}

}  // namespace attention::cuda
