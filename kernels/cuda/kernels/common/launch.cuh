// A kernel type of generic/ or sm90/ as a CUDA kernel.
#pragma once

#include <cuda_runtime.h>

namespace attention::cuda {

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    Entry(const typename Kernel::Arguments arguments) {
  extern __shared__ __align__(1024) char shared[];
  Kernel::Run(arguments, shared);
}

template <typename Kernel>
cudaError_t LaunchEntry(int num_blocks, const typename Kernel::Arguments& arguments,
                        cudaStream_t stream) {
  // More than this needs to be asked for, once on each device; asking again costs nothing to
  // speak of.
  constexpr int kDefaultSharedBytes = 48 << 10;
  if constexpr (Kernel::kSharedBytes > kDefaultSharedBytes) {
    const cudaError_t error = cudaFuncSetAttribute(
        Entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::kSharedBytes);
    if (error != cudaSuccess) return error;
  }
  Entry<Kernel><<<num_blocks, Kernel::kThreads, Kernel::kSharedBytes, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace attention::cuda
