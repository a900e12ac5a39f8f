// The compiled kernels of compute capability 9.0, behind plain functions: one file of device code
// for each. Each returns false, and does nothing, when it has no kernel of those sizes; `error` is
// the launch's.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/contract/device_types.h"

namespace attention::cuda {

// Tiles of 16 rows.
bool LaunchDecodeBulk(DType dtype, DType kv_dtype, int head_dim, int num_blocks,
                      const AttendArguments& arguments, cudaStream_t stream, cudaError_t* error);
// Persistent: more blocks than multiprocessors would only wait.
bool LaunchWgmma(DType dtype, int head_dim, int num_blocks, const AttendArguments& arguments,
                 cudaStream_t stream, cudaError_t* error);

}  // namespace attention::cuda
