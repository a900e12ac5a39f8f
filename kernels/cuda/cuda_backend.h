// Attention on a GPU: an AttentionBackend over a Device. Supports every geometry of the contract.
//
// The bits of a task depend on the task alone (README.md). They also stay the same however its
// rows are cut into tasks, as long as all of them are prefill or all have the same ranges.
//
// AppendKv has taken the rows when it returns, and writes them in order with what follows; an error
// of the device may be told by a later call. A Run that is done, SavePages and CopyPages wait for
// it.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/api/attention_backend.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/projection/cuda_projections.h"

namespace attention::cuda {

struct CudaBackendOptions {
  // Estimated arithmetic of one launch of a run that may yield: 0.8 ms of an H200 at its rate for
  // prefill, beside which 10 us of launching and waiting, and its last blocks, are little.
  double launch_flops = 5e11;
  // Tensors of a part of a run, at the least (plan_runner.h): 0.3 ms of a PCIe 5 bus. A part is a
  // launch, which wants blocks for every multiprocessor, several times: with 64 query heads of 128
  // dims 16 MiB are 256 tiles of prefill, for 132. (Of 4 MiB, 64 tiles, half an H200 had nothing
  // to do, and prefill of 8k took twice as long.)
  std::size_t part_bytes = std::size_t{16} << 20;
  // Rows of a part that are as many bytes or more, and lie as they travel, are not gathered first:
  // copying them on the host would take some 25 us, one more call to the driver a few.
  std::size_t direct_bytes = std::size_t{256} << 10;
  // Another device of the same GPU, on which projections are packed while the first one computes;
  // null: no projections.
  std::shared_ptr<Device> packing_device = nullptr;
  CudaProjectionOptions projections = {};
};

std::unique_ptr<AttentionBackend> MakeCudaBackend(std::shared_ptr<Device> device,
                                                  const CudaBackendOptions& options = {});

}  // namespace attention::cuda
