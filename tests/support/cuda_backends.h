// The CUDA backend that tests run: its kernels executed on the host (tests/simt), or on the GPU of
// the machine. A test program links one of the two.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/api/attention_backend.h"

namespace attention::testing {

// The host can read and write the backend's pages. `seed` draws the orders in which the host runs
// blocks and warps; a launch of a run that may yield has about step_flops.
std::unique_ptr<AttentionBackend> MakeCuda(std::uint32_t seed = 1, double step_flops = 2e11);

// One that stays.
AttentionBackend& Cuda();

// The same on a device of compute capability 9.0: on the host one that passes for it, else the
// machine's, whatever it is.
std::unique_ptr<AttentionBackend> MakeCudaHopper(std::uint32_t seed = 1, double step_flops = 2e11);
AttentionBackend& CudaHopper();

}  // namespace attention::testing
