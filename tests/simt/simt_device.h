// A Device whose memory is the host's and whose kernels run in block.h: the CUDA backend with
// everything but a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "kernels/cuda/device/device.h"
#include "tests/simt/stream_queues.h"

namespace attention::simt {

inline constexpr std::size_t kPlenty = std::size_t{1} << 40;

// `seed` draws the orders in which blocks and warps run, and, unless `eager` says it, when streams
// do their work. With `has_wgmma` it passes for one of compute capability 9.0. Its memory has
// `memory_bytes`, and tells how many are free.
std::shared_ptr<cuda::Device> MakeSimtDevice(std::uint32_t seed, bool has_wgmma = false,
                                             std::optional<EagerStreams> eager = {},
                                             std::size_t memory_bytes = kPlenty);

}  // namespace attention::simt
