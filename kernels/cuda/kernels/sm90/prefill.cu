// For sm_90a alone (kernels/cuda/CMakeLists.txt).
#include "kernels/cuda/kernels/common/launch.cuh"
#include "kernels/cuda/kernels/sm90/dispatch.h"
#include "kernels/cuda/kernels/sm90/launches.h"

namespace attention::cuda {

bool LaunchWgmma(DType dtype, int head_dim, int num_blocks, const AttendArguments& arguments,
                 cudaStream_t stream, cudaError_t* error) {
  const auto launch = [&]<typename Kernel>(Kernel*) {
    *error = LaunchEntry<Kernel>(num_blocks, arguments, stream);
  };
  if (dtype == DType::kFloat16) return DispatchWgmma<DType::kFloat16>(head_dim, launch);
  return dtype == DType::kBFloat16 && DispatchWgmma<DType::kBFloat16>(head_dim, launch);
}

}  // namespace attention::cuda
