#include "kernels/cuda/kernels/common/launch.cuh"
#include "kernels/cuda/kernels/generic/dispatch.h"
#include "kernels/cuda/kernels/generic/launches.h"

namespace attention::cuda {

bool LaunchMmaBFloat16(int head_dim, int tile_rows, int num_blocks,
                       const AttendArguments& arguments, cudaStream_t stream, cudaError_t* error) {
  return DispatchMma<DType::kBFloat16, DType::kBFloat16>(
      head_dim, tile_rows, [&]<typename Kernel>(Kernel*) {
        *error = LaunchEntry<Kernel>(num_blocks, arguments, stream);
      });
}

}  // namespace attention::cuda
