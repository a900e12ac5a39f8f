// Of sm_90a alone (CMakeLists.txt).
#include "kernels/cuda/runtime/kernels.h"
#include "kernels/cuda/runtime/launch.cuh"
#include "kernels/cuda/sm90/dispatch.h"

namespace attention::cuda {

bool LaunchStepBulk(DType dtype, DType kv_dtype, int head_dim, int num_blocks,
                    const AttendArguments& arguments, cudaStream_t stream, cudaError_t* error) {
  return DispatchStepBulk(dtype, kv_dtype, head_dim, [&]<typename Kernel>(Kernel*) {
    *error = LaunchEntry<Kernel>(num_blocks, arguments, stream);
  });
}

}  // namespace attention::cuda
