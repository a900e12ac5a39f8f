// Cuts projections into rounds: what goes to the device in one copy, is multiplied, and comes back
// in one copy. Pure functions of the tasks; how rows are cut does not show in their bits
// (matmul_choice.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kernels/cuda/contract/projection_types.h"
#include "kernels/cuda/plan/plan.h"
#include "kernels/cuda/projection/packed_matrix.h"

namespace attention::cuda {

// How products of a row are computed, by the types of weights and rows. The weights are taken as
// they are. Rows of their type, too; others become their type if that holds every value, else they
// are split into parts of it, each of which is a row of the operand: the weights are read once for
// all of them.
int SplitPartsOf(DType weights, DType x);

// Rows [first, first + count) of a task, which are rows [row, row + count) of the pass.
struct PassPiece {
  const ProjectionTask* task = nullptr;
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t row = 0;
  std::size_t y = kNoOffset;            // in the results: [count, out_features]
  std::size_t frequencies = kNoOffset;  // in the upload
};

// Rows of one type through one projection.
struct ProjectionPass {
  const PackedMatrix* matrix = nullptr;
  DType x_dtype = DType::kFloat32;
  int num_parts = 1;
  std::vector<PassPiece> pieces;
  std::int64_t num_rows = 0;

  // True if x is the operand as it was sent, rows padded with zeros.
  bool is_direct() const { return x_dtype == matrix->shape().dtype; }
  std::int64_t x_row_elements() const {
    return is_direct() ? matrix->shape().padded_in() : matrix->shape().in_features;
  }
  std::int64_t operand_rows() const { return num_parts * num_rows; }

  std::size_t x = kNoOffset;                             // in the upload
  std::size_t operand = kNoOffset, unscale = kNoOffset;  // in the scratch; not of a direct one
  std::size_t product = kNoOffset;                       // in the scratch
};

struct ProjectionRound {
  std::vector<ProjectionPass> passes;
  std::vector<RowItem> split_items, finish_items;
  std::size_t num_splits = 0, num_finishes = 0;

  // In the upload.
  std::size_t device_splits = 0, device_split_items = 0, device_finishes = 0,
              device_finish_items = 0;
  std::map<const Rotary*, std::size_t> frequencies;

  std::size_t upload_bytes = 0;
  std::size_t scratch_bytes = 0;
  std::size_t result_bytes = 0;
};

// A round takes about `max_bytes` of device memory, and kMinPassRows rows of a pass however long
// they are.
inline constexpr std::int64_t kMinPassRows = 128;
std::vector<ProjectionRound> PlanProjections(std::span<const ProjectionTask> tasks,
                                             std::size_t max_bytes);

}  // namespace attention::cuda
