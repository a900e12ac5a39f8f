// The CUDA backend that tests run: its kernels executed on the host (tests/simt), or on the GPU of
// the machine. A test program links one of the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/api/attention_backend.h"

namespace attention::testing {

// The host can read and write the backend's pages. `seed` draws the orders in which the host runs
// blocks and warps; a launch of a run that may yield has about launch_flops.
std::unique_ptr<AttentionBackend> MakeCuda(std::uint32_t seed = 1, double launch_flops = 2e11);

// One whose runs are cut into parts of at least so many bytes, as small as tests are. On the host
// `order` says which streams do their work early (bit i: stream i) and which late; the last one has
// it drawn. `order` means nothing to a GPU.
inline constexpr int kNumStreamOrders = 9;
std::unique_ptr<AttentionBackend> MakeCudaOverlapping(std::size_t part_bytes, int order,
                                                      double launch_flops = 2e11);

// The backend that all tests of a program share.
AttentionBackend& Cuda();

// The same on a device of compute capability 9.0: on the host one that passes for it, else the
// machine's, whatever it is.
std::unique_ptr<AttentionBackend> MakeCudaHopper(std::uint32_t seed = 1,
                                                 double launch_flops = 2e11);
AttentionBackend& CudaHopper();

}  // namespace attention::testing
