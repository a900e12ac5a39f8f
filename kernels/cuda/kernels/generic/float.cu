#include "kernels/cuda/kernels/common/launch.cuh"
#include "kernels/cuda/kernels/generic/append.h"
#include "kernels/cuda/kernels/generic/dispatch.h"
#include "kernels/cuda/kernels/generic/launches.h"

namespace attention::cuda {

bool LaunchAttendFloat(int head_dim, int num_blocks, const AttendArguments& arguments,
                       cudaStream_t stream, cudaError_t* error) {
  return DispatchHeadDim<AttendFloat>(head_dim, [&]<typename Kernel>(Kernel*) {
    *error = LaunchEntry<Kernel>(num_blocks, arguments, stream);
  });
}

bool LaunchRowTotals(int head_dim, int num_blocks, const AttendArguments& arguments,
                     cudaStream_t stream, cudaError_t* error) {
  return DispatchHeadDim<RowTotals>(head_dim, [&]<typename Kernel>(Kernel*) {
    *error = LaunchEntry<Kernel>(num_blocks, arguments, stream);
  });
}

bool LaunchProbe(int head_dim, int num_blocks, const ProbeArguments& arguments, cudaStream_t stream,
                 cudaError_t* error) {
  return DispatchHeadDim<Probe>(head_dim, [&]<typename Kernel>(Kernel*) {
    *error = LaunchEntry<Kernel>(num_blocks, arguments, stream);
  });
}

cudaError_t LaunchAppend(int num_blocks, const AppendArguments& arguments, cudaStream_t stream) {
  return LaunchEntry<Append>(num_blocks, arguments, stream);
}

}  // namespace attention::cuda
