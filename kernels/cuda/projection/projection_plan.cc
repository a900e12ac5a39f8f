#include "kernels/cuda/projection/projection_plan.h"

#include <algorithm>
#include <utility>

namespace attention::cuda {
namespace {

// All tasks of one projection with rows of one type.
struct Group {
  const PackedMatrix* matrix = nullptr;
  DType x_dtype = DType::kFloat32;
  std::vector<const ProjectionTask*> tasks;
};

// In the order in which they appear.
std::vector<Group> GroupTasks(std::span<const ProjectionTask> tasks) {
  std::vector<Group> groups;
  std::map<std::pair<const PackedProjection*, DType>, std::size_t> index_of;
  for (const ProjectionTask& task : tasks) {
    if (task.num_rows == 0) continue;
    const auto [it, is_new] =
        index_of.emplace(std::pair(task.projection, task.x_dtype), groups.size());
    if (is_new) {
      groups.push_back({static_cast<const PackedMatrix*>(task.projection), task.x_dtype, {}});
    }
    groups[it->second].tasks.push_back(&task);
  }
  return groups;
}

// Bytes of a row, everywhere; its y counts as the widest type.
std::size_t RowBytes(const Group& group) {
  const PackedMatrix::Shape& shape = group.matrix->shape();
  const std::size_t product = shape.padded_out() * sizeof(float);
  return shape.in_features * DTypeBytes(group.x_dtype) + product +
         SplitPartsOf(shape.dtype, group.x_dtype) * (shape.row_bytes() + product);
}

class Planner {
 public:
  explicit Planner(std::size_t max_bytes) : max_bytes_(max_bytes) {}

  void Add(const Group& group) {
    const std::size_t row_bytes = RowBytes(group);
    ProjectionPass* pass = nullptr;
    for (const ProjectionTask* task : group.tasks) {
      for (std::int64_t first = 0; first < task->num_rows;) {
        if (RowsLeft(row_bytes) == 0 && (pass == nullptr || pass->num_rows >= kMinPassRows)) {
          Close();
          pass = nullptr;
        }
        if (pass == nullptr) pass = AddPass(group);
        const std::int64_t room =
            std::max(RowsLeft(row_bytes), std::max<std::int64_t>(1, kMinPassRows - pass->num_rows));
        const std::int64_t count = std::min(room, task->num_rows - first);
        pass->pieces.push_back({task, first, count, pass->num_rows});
        pass->num_rows += count;
        used_ += count * row_bytes;
        first += count;
      }
    }
  }

  std::vector<ProjectionRound> Finish() {
    Close();
    return std::move(rounds_);
  }

 private:
  std::int64_t RowsLeft(std::size_t row_bytes) const {
    return used_ >= max_bytes_ ? 0 : static_cast<std::int64_t>((max_bytes_ - used_) / row_bytes);
  }

  ProjectionPass* AddPass(const Group& group) {
    ProjectionPass pass;
    pass.matrix = group.matrix;
    pass.x_dtype = group.x_dtype;
    pass.num_parts = SplitPartsOf(group.matrix->shape().dtype, group.x_dtype);
    round_.passes.push_back(std::move(pass));
    return &round_.passes.back();
  }

  void Close() {
    if (!round_.passes.empty()) {
      LayOut(round_);
      rounds_.push_back(std::move(round_));
    }
    round_ = {};
    used_ = 0;
  }

  static void LayOut(ProjectionRound& round);
  static void LayOutPass(ProjectionPass& pass, ProjectionRound& round, BufferLayout& upload,
                         BufferLayout& scratch, BufferLayout& results);

  const std::size_t max_bytes_;
  std::vector<ProjectionRound> rounds_;
  ProjectionRound round_;
  std::size_t used_ = 0;
};

void Planner::LayOutPass(ProjectionPass& pass, ProjectionRound& round, BufferLayout& upload,
                         BufferLayout& scratch, BufferLayout& results) {
  const PackedMatrix::Shape& shape = pass.matrix->shape();
  const std::int64_t block_rows = RowsOfBlocks(pass.matrix->blocks(), pass.operand_rows());
  pass.product = scratch.Add(block_rows * shape.padded_out() * sizeof(float));
  // The last block reads past the rows that are there; nobody sees what it makes of that.
  pass.x = upload.Add((pass.is_direct() ? block_rows : pass.num_rows) * pass.x_row_elements() *
                      DTypeBytes(pass.x_dtype));
  if (!pass.is_direct()) {
    pass.operand = scratch.Add(block_rows * shape.row_bytes());
    pass.unscale = scratch.Add(pass.num_rows * sizeof(float));
    const auto split = static_cast<int>(round.num_splits++);
    for (std::int64_t row = 0; row < pass.num_rows; ++row) {
      round.split_items.push_back({split, row});
    }
  }
  for (PassPiece& piece : pass.pieces) {
    piece.y = results.Add(piece.count * shape.out_features * DTypeBytes(piece.task->y_dtype));
    if (const Rotary* rotary = piece.task->rotary; rotary != nullptr) {
      const auto [it, is_new] = round.frequencies.emplace(rotary, 0);
      if (is_new) it->second = upload.Add(rotary->frequencies().size() * sizeof(double));
      piece.frequencies = it->second;
    }
    const auto finish = static_cast<int>(round.num_finishes++);
    for (std::int64_t row = 0; row < piece.count; ++row) {
      round.finish_items.push_back({finish, row});
    }
  }
}

void Planner::LayOut(ProjectionRound& round) {
  BufferLayout upload, scratch, results;
  for (ProjectionPass& pass : round.passes) LayOutPass(pass, round, upload, scratch, results);
  round.device_splits = upload.Add(round.num_splits * sizeof(DeviceSplit));
  round.device_split_items = upload.Add(round.split_items.size() * sizeof(RowItem));
  round.device_finishes = upload.Add(round.num_finishes * sizeof(DeviceFinish));
  round.device_finish_items = upload.Add(round.finish_items.size() * sizeof(RowItem));
  round.upload_bytes = upload.size();
  round.scratch_bytes = scratch.size();
  round.result_bytes = results.size();
}

}  // namespace

int SplitPartsOf(DType weights, DType x) {
  return weights == DType::kFloat32 || weights == x ? 1 : kMaxSplitParts;
}

std::vector<ProjectionRound> PlanProjections(std::span<const ProjectionTask> tasks,
                                             std::size_t max_bytes) {
  Planner planner(max_bytes);
  for (const Group& group : GroupTasks(tasks)) planner.Add(group);
  return planner.Finish();
}

}  // namespace attention::cuda
