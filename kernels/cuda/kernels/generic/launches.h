// The compiled kernels, behind plain functions: one file of device code for each. Each returns
// false, and does nothing, when it has no kernel of those sizes; `error` is the launch's.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/contract/projection_types.h"

namespace attention::cuda {

bool LaunchMmaBFloat16(int head_dim, int tile_rows, int num_blocks,
                       const AttendArguments& arguments, cudaStream_t stream, cudaError_t* error);
bool LaunchMmaFloat16(int head_dim, int tile_rows, int num_blocks, const AttendArguments& arguments,
                      cudaStream_t stream, cudaError_t* error);
bool LaunchMmaInt8(int head_dim, int tile_rows, int num_blocks, const AttendArguments& arguments,
                   cudaStream_t stream, cudaError_t* error);
bool LaunchMmaFloat8(int head_dim, int tile_rows, int num_blocks, const AttendArguments& arguments,
                     cudaStream_t stream, cudaError_t* error);
bool LaunchAttendFloat(int head_dim, int num_blocks, const AttendArguments& arguments,
                       cudaStream_t stream, cudaError_t* error);
bool LaunchRowTotals(int head_dim, int num_blocks, const AttendArguments& arguments,
                     cudaStream_t stream, cudaError_t* error);
bool LaunchProbe(int head_dim, int num_blocks, const ProbeArguments& arguments, cudaStream_t stream,
                 cudaError_t* error);
cudaError_t LaunchAppend(int num_blocks, const AppendArguments& arguments, cudaStream_t stream);

cudaError_t LaunchSplitRows(int num_blocks, const SplitArguments& arguments, cudaStream_t stream);
cudaError_t LaunchFinishRows(int num_blocks, const FinishArguments& arguments, cudaStream_t stream);

}  // namespace attention::cuda
