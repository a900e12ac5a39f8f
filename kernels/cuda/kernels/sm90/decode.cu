// For sm_90a alone (kernels/cuda/CMakeLists.txt).
#include "kernels/cuda/kernels/common/launch.cuh"
#include "kernels/cuda/kernels/sm90/dispatch.h"
#include "kernels/cuda/kernels/sm90/launches.h"

namespace attention::cuda {

bool LaunchDecodeBulk(DType dtype, DType kv_dtype, int head_dim, int num_blocks,
                      const AttendArguments& arguments, cudaStream_t stream, cudaError_t* error) {
  return DispatchDecodeBulk(dtype, kv_dtype, head_dim, [&]<typename Kernel>(Kernel*) {
    *error = LaunchEntry<Kernel>(num_blocks, arguments, stream);
  });
}

}  // namespace attention::cuda
