// Runs plans on a device: uploads, launches, downloads, and what of them waits for what.
//
// A run of several parts goes through three streams, so that the tensors of one part travel, and
// the host gathers and delivers them, while another part is computed:
//
//   host       fill 0 | fill 1 | fill 2 |           | deliver 0 | deliver 1 | deliver 2
//   upload            | copy 0 | copy 1 | copy 2 |
//   compute                    | part 0    | part 1    | part 2    |
//   download                               | copy 0 |  | copy 1 |  | copy 2 |
//
// A run of one part, as every step of decoding is, has nothing to overlap with: all of it goes
// through the compute stream, and nothing waits but the host at its end.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/plan/plan.h"
#include "kernels/cuda/plan/run_memory.h"
#include "kernels/cuda/plan/staging.h"

namespace attention::cuda {

class PlanRunner {
 public:
  // The references must outlive it. `direct_bytes` as in CudaBackendOptions.
  PlanRunner(Device& device, RunMemoryPool& memories, std::size_t direct_bytes)
      : device_(device), memories_(memories), direct_bytes_(direct_bytes) {}

  // As AttentionBackend::Run. Unless it has yielded, the plan's memory is for the caller to retire.
  // Everything that the device was asked for before is done when it has.
  absl::StatusOr<RunState> Advance(CudaPlan& plan, const std::atomic<bool>* should_yield);

  // For the caller to retire the memory of a run that has ended. After an error the device may be
  // anywhere in it: waits.
  void End(CudaPlan& plan, const absl::Status& status);

 private:
  absl::Status Begin(CudaPlan& plan);
  absl::Status UploadNext(CudaPlan& plan);
  absl::Status AwaitLaunched(CudaPlan& plan);
  absl::Status CopyUpload(const CudaPlan& plan, std::size_t begin, std::size_t end,
                          const std::vector<DirectCopy>& direct);
  absl::Status UploadTo(CudaPlan& plan, std::size_t part);
  absl::Status LaunchSlices(CudaPlan& plan, std::size_t end);
  absl::Status LaunchOne(const CudaPlan& plan, const LaunchSlice& slice);
  absl::Status Download(const CudaPlan& plan, std::size_t part);
  absl::Status Collect(const CudaPlan& plan);

  Device& device_;
  RunMemoryPool& memories_;
  const std::size_t direct_bytes_;
};

}  // namespace attention::cuda
