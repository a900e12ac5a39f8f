// The MatmulDevice of a GPU: cuBLASLt's products, and our kernels around them.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/cuda/device/device_context.h"
#include "kernels/cuda/device/matmul.h"

namespace attention::cuda {

// `memory` of the device, `stream` on it; both must outlive it. UNAVAILABLE when the library is not
// there or does not start.
absl::StatusOr<std::unique_ptr<MatmulDevice>> MakeCudaMatmuls(
    int ordinal, std::shared_ptr<DeviceContext> context, MemoryAllocator& memory,
    cudaStream_t stream);

}  // namespace attention::cuda
