#include "kernels/cuda/runtime/kernels.h"
#include "kernels/cuda/runtime/launch.cuh"
#include "kernels/cuda/sm80/finish_rows.h"
#include "kernels/cuda/sm80/split_rows.h"

namespace attention::cuda {

cudaError_t LaunchSplitRows(int num_blocks, const SplitArguments& arguments, cudaStream_t stream) {
  return LaunchEntry<SplitRows>(num_blocks, arguments, stream);
}

cudaError_t LaunchFinishRows(int num_blocks, const FinishArguments& arguments,
                             cudaStream_t stream) {
  return LaunchEntry<FinishRows>(num_blocks, arguments, stream);
}

}  // namespace attention::cuda
