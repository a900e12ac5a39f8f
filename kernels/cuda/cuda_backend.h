// Attention on a GPU: an AttentionBackend over a Device. Supports every geometry of the contract.
//
// The bits of a task depend on the task alone (README.md). They also stay the same however its
// rows are cut into tasks, as long as all of them are prompts or all have the same ranges.
#pragma once

#include <memory>

#include "kernels/api/attention_backend.h"
#include "kernels/cuda/device.h"

namespace attention::cuda {

struct CudaBackendOptions {
  // Estimated arithmetic of one launch of a run that may yield: about half a millisecond of an H100
  // at its rate for prompts, beside which 10 us of launching and waiting are little.
  double step_flops = 2e11;
};

std::unique_ptr<AttentionBackend> MakeCudaBackend(std::shared_ptr<Device> device,
                                                  const CudaBackendOptions& options = {});

}  // namespace attention::cuda
