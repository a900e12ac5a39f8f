// The items of a plan: tiles of rows over ranges of keys, sums of rows for the second pass, and its
// probes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/plan/plan.h"

namespace attention::cuda {

// About every kernel's tile of keys: for what a tile costs.
inline constexpr int kSpanTile = 64;
// Queries and keys of a block of the second pass.
inline constexpr int kProbeTile = 32;

// Cuts the tasks of a plan into items. Those of tiles come into the plan with Sort, when all its
// parts are known; the others at once.
class WorkItems {
 public:
  explicit WorkItems(CudaPlan& plan) : plan_(plan) {}

  // Tiles so far, one for each range of each: what begins later belongs to a later part.
  std::size_t num_units() const { return units_.size(); }

  // The items of a tile of rows: one, or one for each range in which its rows see keys.
  void AddTile(const PlannedTask& planned, const DeviceTask& device, WorkItem item);

  // Maxima and sums of queries [q_begin, q_end) of a task, range by range.
  void AddTotals(const DeviceTask& device, int index, std::int64_t q_begin, std::int64_t q_end);

  void AddProbes(const AttentionTask& task, int index, std::int64_t q_begin, std::int64_t q_end,
                 bool is_column_sum);

  // Puts the tiles into the plan, part by part and kernel by kernel, the most expensive first, so
  // that the last blocks of a launch are short; the heads of a tile side by side.
  void Sort();

  std::span<const double> costs() const { return costs_; }  // of the plan's items, after Sort
  std::int64_t num_partials() const { return num_partials_; }

 private:
  // The items of a tile of rows and a range, which its KV heads have in common: the first one's.
  struct Unit {
    KernelId kernel;
    WorkItem item;
    double cost = 0;
  };

  void AddHeads(const Unit& unit);
  void AddTotalsOfTile(const DeviceTask& device, WorkItem item);

  CudaPlan& plan_;
  std::vector<Unit> units_;
  std::vector<double> costs_;
  std::int64_t num_partials_ = 0;
};

}  // namespace attention::cuda
