// Kernels that measure a device, not use it.
#include <cuda_runtime.h>

#include "kernels/cuda/kernels/generic/meter.h"
#include "kernels/cuda/kernels/intrinsics/simt.h"

namespace attention::cuda {
namespace {

// kIsKept: by ordinary loads. Those that are marked for streaming make room for each other first,
// and what the L2 cache held before would stay.
template <bool kIsKept>
__global__ void ReadAll(const uint4* memory, std::size_t count, float* out) {
  std::uint32_t bits = 0;
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const uint4 word = kIsKept ? __ldcg(memory + i) : __ldcs(memory + i);
    bits |= word.x ^ word.y ^ word.z ^ word.w;
  }
  // Never so, but the compiler cannot know.
  if (bits == 0x9e3779b9u) out[0] = 1.0f;
}

__global__ void MultiplyMatrices(int rounds, float* out) {
  float c[8][4] = {};
  const std::uint32_t a[4] = {threadIdx.x, threadIdx.x + 1, threadIdx.x + 2, threadIdx.x + 3};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < 8; ++i) Mma<DType::kBFloat16>(c[i], a, a[0], a[1]);
  }
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  if (sum == 1.25f) out[0] = sum;
}

__global__ void MultiplyAdd(int rounds, float* out) {
  float c[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) c[i] = static_cast<float>(threadIdx.x + i);
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = Fma(c[i], 0.999f, 0.001f);
  }
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += c[i];
  if (sum == 1.25f) out[0] = sum;
}

}  // namespace

cudaError_t LaunchRead(const void* memory, std::size_t bytes, int num_blocks, float* out,
                       cudaStream_t stream) {
  ReadAll<false>
      <<<num_blocks, 512, 0, stream>>>(static_cast<const uint4*>(memory), bytes / 16, out);
  return cudaGetLastError();
}

cudaError_t LaunchTouch(const void* memory, std::size_t bytes, int num_blocks, float* out,
                        cudaStream_t stream) {
  ReadAll<true><<<num_blocks, 512, 0, stream>>>(static_cast<const uint4*>(memory), bytes / 16, out);
  return cudaGetLastError();
}

cudaError_t LaunchMmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream) {
  MultiplyMatrices<<<num_blocks, 256, 0, stream>>>(rounds, out);
  return cudaGetLastError();
}

cudaError_t LaunchFmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream) {
  MultiplyAdd<<<num_blocks, 256, 0, stream>>>(rounds, out);
  return cudaGetLastError();
}

}  // namespace attention::cuda
