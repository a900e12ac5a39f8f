// A DeviceMeter of a GPU: CUDA events, and kernels that do nothing but what is measured.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/cuda/device/device_meter.h"

namespace attention::cuda {

// `stream` is the one that launches go to.
std::unique_ptr<DeviceMeter> MakeCudaMeter(int ordinal, bool has_wgmma, cudaStream_t stream);

}  // namespace attention::cuda
