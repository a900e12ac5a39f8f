// Projections on a GPU: a ProjectionBackend over a Device and its products.
//
// The bits of a row depend on that row, the weights and the types alone (README.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/api/projection.h"
#include "kernels/cuda/device/device.h"

namespace attention::cuda {

struct CudaProjectionOptions {
  // Rows of the blocks in which products are computed, ascending; each divides the last. 16 rows
  // are the least that matrix instructions are cut for, 1024 fill a GPU with tiles: 8 x 32 of 128 x
  // 128 for 4096 out_features, two for each multiprocessor of an H100.
  std::vector<std::int64_t> block_rows = {16, 64, 128, 256, 512, 1024};
  // Device memory for the tensors of one round.
  std::size_t max_round_bytes = std::size_t{256} << 20;
};

// `packing_device` is another one of the same GPU, for the threads that pack. The errors of
// Device::matmuls of either.
absl::StatusOr<std::unique_ptr<ProjectionBackend>> MakeCudaProjections(
    std::shared_ptr<Device> device, std::shared_ptr<Device> packing_device,
    const CudaProjectionOptions& options = {});

}  // namespace attention::cuda
