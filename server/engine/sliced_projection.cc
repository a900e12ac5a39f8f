#include "server/engine/sliced_projection.h"

#include <algorithm>
#include <utility>

#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// Fewer rows would read the weights anew for too little arithmetic; more than kMaxRows gain
// nothing.
constexpr std::int64_t kMinRows = 16;
constexpr std::int64_t kMaxRows = 1024;

ProjectionTask RowsOf(const ProjectionTask& task, std::int64_t begin, std::int64_t count) {
  ProjectionTask rows = task;
  rows.num_rows = count;
  rows.x = static_cast<const char*>(task.x) +
           begin * task.x_stride * static_cast<std::int64_t>(DTypeBytes(task.x_dtype));
  rows.y = static_cast<char*>(task.y) +
           begin * task.y_stride * static_cast<std::int64_t>(DTypeBytes(task.y_dtype));
  rows.first_position += begin;
  return rows;
}

std::int64_t ChunkRows(const ProjectionTask& task, double chunk_flops) {
  const double row_flops = ProjectionFlops(task) / static_cast<double>(task.num_rows);
  const auto rows = static_cast<std::int64_t>(chunk_flops / row_flops) / kMinRows * kMinRows;
  return std::clamp(rows, kMinRows, kMaxRows);
}

}  // namespace

double ProjectionFlops(const ProjectionTask& task) {
  return 2.0 * static_cast<double>(task.num_rows) *
         static_cast<double>(task.projection->in_features()) *
         static_cast<double>(task.projection->out_features());
}

SlicedProjection::SlicedProjection(ProjectionBackend* backend, std::vector<ProjectionTask> tasks)
    : backend_(backend),
      tasks_(std::move(tasks)),
      chunk_flops_(backend == nullptr ? 0 : backend->chunk_flops()) {
  for (const ProjectionTask& task : tasks_) flops_ += ProjectionFlops(task);
}

absl::StatusOr<RunState> SlicedProjection::Run(const std::atomic<bool>& should_yield) {
  // Several short tasks fill a chunk together.
  while (next_task_ < tasks_.size()) {
    std::vector<ProjectionTask> chunk;
    double flops = 0;
    while (next_task_ < tasks_.size() && flops < chunk_flops_) {
      const ProjectionTask& task = tasks_[next_task_];
      if (task.num_rows > 0) {
        const std::int64_t count =
            std::min(ChunkRows(task, chunk_flops_), task.num_rows - next_row_);
        chunk.push_back(RowsOf(task, next_row_, count));
        flops += ProjectionFlops(chunk.back());
        next_row_ += count;
      }
      if (next_row_ < task.num_rows) continue;
      ++next_task_;
      next_row_ = 0;
    }
    ATTENTION_RETURN_IF_ERROR(backend_->Project(chunk));
    flops_done_ += flops;
    if (next_task_ < tasks_.size() && should_yield.load(std::memory_order_relaxed)) {
      return RunState::kYielded;
    }
  }
  return RunState::kDone;
}

}  // namespace attention::server
