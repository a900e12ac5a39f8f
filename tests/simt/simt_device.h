// A Device whose memory is the host's and whose kernels run in block.h: the CUDA backend with
// everything but a GPU.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/device.h"

namespace attention::simt {

// `seed` draws the orders in which blocks and warps run.
std::shared_ptr<cuda::Device> MakeSimtDevice(std::uint32_t seed);

}  // namespace attention::simt
