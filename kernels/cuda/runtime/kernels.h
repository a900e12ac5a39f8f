// The compiled kernels, behind plain functions: one file of device code for each. Each returns
// false, and does nothing, when it has no kernel of those sizes; `error` is the launch's.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/device_types.h"
#include "kernels/cuda/projection_types.h"

namespace attention::cuda {

bool LaunchMmaBFloat16(int head_dim, int tile_rows, int num_blocks,
                       const AttendArguments& arguments, cudaStream_t stream, cudaError_t* error);
bool LaunchMmaFloat16(int head_dim, int tile_rows, int num_blocks, const AttendArguments& arguments,
                      cudaStream_t stream, cudaError_t* error);
bool LaunchMmaInt8(int head_dim, int tile_rows, int num_blocks, const AttendArguments& arguments,
                   cudaStream_t stream, cudaError_t* error);
bool LaunchMmaFloat8(int head_dim, int tile_rows, int num_blocks, const AttendArguments& arguments,
                     cudaStream_t stream, cudaError_t* error);
// Of tiles of 16 rows, on compute capability 9.0.
bool LaunchStepBulk(DType dtype, DType kv_dtype, int head_dim, int num_blocks,
                    const AttendArguments& arguments, cudaStream_t stream, cudaError_t* error);
// Persistent: more blocks than multiprocessors would only wait.
bool LaunchWgmma(DType dtype, int head_dim, int num_blocks, const AttendArguments& arguments,
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

// Reads `bytes` and writes next to nothing: what memory gives to kernels that stream.
cudaError_t LaunchRead(const void* memory, std::size_t bytes, int num_blocks, float* out,
                       cudaStream_t stream);
// `rounds` rounds of 8 independent matrix instructions (m16n8k16, bfloat16) a warp, 8 warps a
// block, and of 8 fused multiply-adds a thread.
cudaError_t LaunchMmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream);
cudaError_t LaunchFmaPeak(int num_blocks, int rounds, float* out, cudaStream_t stream);

}  // namespace attention::cuda
