// For sm_90a alone (kernels/cuda/CMakeLists.txt).
#include <cuda_runtime.h>

#include "kernels/cuda/kernels/sm90/operand.h"
#include "kernels/cuda/kernels/sm90/wgmma_peak.h"

namespace attention::cuda {
namespace {

constexpr int kRows = 64;      // of A, for each warpgroup
constexpr int kColumns = 128;  // of B
constexpr int kDepth = 64;     // a line of 128 bytes
constexpr int kGroups = 2;     // warpgroups of a block
constexpr int kSteps = 16;     // products of a round, so that a wait costs little
constexpr int kRowBytes = kDepth * 2;
constexpr int kElements = (kGroups * kRows + kColumns) * kDepth;

// Random bfloat16 between 1 and 2 in magnitude, of either sign: operands of few different bits, or
// zeros, take less power, and a product of them runs faster than any that means something.
__device__ std::uint16_t RandomElement(std::uint32_t index) {
  std::uint32_t bits = index * 2654435761u + blockIdx.x * 40503u;
  bits ^= bits >> 15;
  bits *= 2246822519u;
  bits ^= bits >> 13;
  return static_cast<std::uint16_t>(0x3f80u | (bits & 0x807fu));
}

__global__ void __launch_bounds__(kGroups * 128, 1) Multiply(int rounds, float* out) {
  extern __shared__ __align__(1024) char shared[];
  auto* elements = reinterpret_cast<std::uint16_t*>(shared);
  for (int i = threadIdx.x; i < kElements; i += blockDim.x) elements[i] = RandomElement(i);
  FenceAsyncProxy();
  __syncthreads();
  using Operand = TileOperand<kRowBytes>;
  const std::uint32_t base = SharedAddress(shared);
  const std::uint32_t group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  const std::uint64_t a = Operand::KMajor(base + group * kRows * kRowBytes);
  const std::uint64_t b = Operand::KMajor(base + kGroups * kRows * kRowBytes);
  float c[kColumns / 8][4] = {};
  for (int round = 0; round < rounds; ++round) {
    PinRegisters(c);
    FenceWgmma();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int offset = Operand::KMajorStep(step % (kDepth / Operand::kStep));
      MultiplyShared<DType::kBFloat16>(c, Advanced(a, offset), Advanced(b, offset), true);
    }
    CommitWgmma();
    WaitWgmma<0>();
    PinRegisters(c);
  }
  float sum = 0;
#pragma unroll
  for (int block = 0; block < kColumns / 8; ++block) sum += c[block][0] + c[block][3];
  if (sum == 1.25f) out[0] = sum;
}

}  // namespace

cudaError_t LaunchWgmmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream) {
  static_assert(kWgmmaRoundFlops == 2.0 * kGroups * kRows * kColumns * kSteps * 16);
  Multiply<<<num_blocks, kGroups * 128, kElements * 2, stream>>>(rounds, out);
  return cudaGetLastError();
}

}  // namespace attention::cuda
