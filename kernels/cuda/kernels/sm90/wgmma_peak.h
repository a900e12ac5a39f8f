// Measures the rate of a warpgroup's matrix instructions (wgmma_peak.cu).
#pragma once

#include <cuda_runtime_api.h>

namespace attention::cuda {

// Products of warpgroups on random operands in shared memory, `rounds` rounds of kWgmmaRoundFlops
// in each block; a block fills a multiprocessor.
inline constexpr double kWgmmaRoundFlops = 2.0 * 2 * 64 * 128 * 256;  // m64n128 twice, 256 deep
cudaError_t LaunchWgmmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream);

}  // namespace attention::cuda
