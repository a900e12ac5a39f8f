// The shape of the last plan, for the next one if its tasks are alike: the layers of a model attend
// one after another with the same sessions at the same lengths, and differ in addresses alone.
//
// Thread-safety: one thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/cuda/plan/plan.h"

namespace attention::cuda {

// True if a plan for one is a plan for the other, but for the addresses.
bool IsAlike(const AttentionTask& a, const AttentionTask& b);

class PlanCache {
 public:
  // As MakeCudaPlan, with the same options each time.
  absl::StatusOr<std::unique_ptr<CudaPlan>> Plan(std::span<const AttentionTask> tasks,
                                                 const PlanOptions& options);

  // Plans that were not made anew.
  std::int64_t num_hits() const { return num_hits_; }

 private:
  bool IsLast(std::span<const AttentionTask> tasks) const;

  std::optional<PlanShape> last_;  // its tasks' addresses mean nothing any more
  std::int64_t num_hits_ = 0;
};

}  // namespace attention::cuda
