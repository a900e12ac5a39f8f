// CUDA's errors in the project's words.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"

namespace attention::cuda {

// True if it stays: every later call in the context answers it too (CUDA: "the process must be
// terminated and relaunched").
bool IsSticky(cudaError_t error);

// RESOURCE_EXHAUSTED for memory, UNAVAILABLE for a driver or device that cannot be used, else
// INTERNAL. The error is not left behind for whoever asks this thread's runtime next.
absl::Status ToStatus(cudaError_t error, const char* what);

}  // namespace attention::cuda
