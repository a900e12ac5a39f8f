// Projections of a long request, chunk by chunk of rows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/api/projection.h"

namespace attention::server {

class SlicedProjection {
 public:
  // `backend` may be null if there are no tasks.
  SlicedProjection(ProjectionBackend* backend, std::vector<ProjectionTask> tasks);

  double flops() const { return flops_; }
  double flops_done() const { return flops_done_; }

  // Goes on until done, or, after one chunk at the least, until `should_yield` is set.
  absl::StatusOr<RunState> Run(const std::atomic<bool>& should_yield);

 private:
  ProjectionBackend* const backend_;
  const std::vector<ProjectionTask> tasks_;
  const double chunk_flops_;  // what others wait for at the most
  double flops_ = 0;
  double flops_done_ = 0;
  std::size_t next_task_ = 0;
  std::int64_t next_row_ = 0;  // of the next task
};

// 2 * in_features * out_features for each row.
double ProjectionFlops(const ProjectionTask& task);

}  // namespace attention::server
