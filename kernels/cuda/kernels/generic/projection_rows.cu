#include "kernels/cuda/kernels/common/launch.cuh"
#include "kernels/cuda/kernels/generic/finish_rows.h"
#include "kernels/cuda/kernels/generic/launches.h"
#include "kernels/cuda/kernels/generic/split_rows.h"

namespace attention::cuda {

cudaError_t LaunchSplitRows(int num_blocks, const SplitArguments& arguments, cudaStream_t stream) {
  return LaunchEntry<SplitRows>(num_blocks, arguments, stream);
}

cudaError_t LaunchFinishRows(int num_blocks, const FinishArguments& arguments,
                             cudaStream_t stream) {
  return LaunchEntry<FinishRows>(num_blocks, arguments, stream);
}

}  // namespace attention::cuda
