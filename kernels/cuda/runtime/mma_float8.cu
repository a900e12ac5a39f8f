#include "kernels/cuda/runtime/kernels.h"
#include "kernels/cuda/runtime/launch.cuh"
#include "kernels/cuda/sm80/dispatch.h"

namespace attention::cuda {

bool LaunchMmaFloat8(int head_dim, int tile_rows, int num_blocks, const AttendArguments& arguments,
                     cudaStream_t stream, cudaError_t* error) {
  return DispatchMma<DType::kBFloat16, DType::kFloat8E4M3>(
      head_dim, tile_rows, [&]<typename Kernel>(Kernel*) {
        *error = LaunchEntry<Kernel>(num_blocks, arguments, stream);
      });
}

}  // namespace attention::cuda
