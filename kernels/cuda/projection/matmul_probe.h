// Tries what the library offers for a layer's shape on random numbers, and chooses from it.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/projection/matmul_choice.h"

namespace attention::cuda {

// For blocks of `block_rows` rows, ascending, each of which divides the last; rows and bias of
// `shape` are not read: products have the bias, unless the library cannot add it. The same on every
// device of a model, whatever else it does: nothing is timed. Takes the memory of a block of the
// largest size with its operands for as long as it lasts, and the time of some 100 such products
// and of fetching them. RESOURCE_EXHAUSTED when memory is out, UNIMPLEMENTED when the library has
// no algorithm, and the device's errors.
absl::StatusOr<MatmulBlocks> ProbeAlgorithms(Device& device, MatmulDevice& matmuls,
                                             const MatmulShape& shape,
                                             std::span<const std::int64_t> block_rows);

}  // namespace attention::cuda
