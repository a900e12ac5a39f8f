// Cuts tasks into work items. Nothing decided here changes the bits of a result
// (docs/design/batch-invariance.md), so items may follow the number of threads and the neighbours
// in the batch.
#pragma once

#include <algorithm>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/workspace.h"

namespace attention::cpu {

// Packs tokens [token_begin, token_end) of one KV head of an append.
struct PackItem {
  int append = 0;  // index
  int kv_head = 0;
  std::int64_t token_begin = 0;
  std::int64_t token_end = 0;
};

// The work that a thread claims at once: an item, or all items of one KV head, or of a small task,
// whose contiguous keys and values it packs itself first, so that they are still in its L2 cache
// when they are read.
struct WorkUnit {
  std::int64_t item_begin = 0;
  std::int64_t item_end = 0;
  int append = -1;             // what to pack first; -1: nothing
  bool is_whole_task = false;  // all its heads
};

// One row block of a tile whose ranges were split among items.
struct MergeItem {
  WorkItem tile;
  int row_block = 0;
};

struct CpuPlan : AttentionPlan {
  std::vector<PlannedTask> tasks;
  std::deque<JoinedTile> joined;  // to which items refer
  std::vector<WorkItem> items;
  std::vector<WorkUnit> units;         // of the items, in starting order
  std::vector<MergeItem> merges;       // rows whose ranges were split among items
  std::vector<WorkItem> column_items;  // second pass, for tasks that want column sums
  int max_column_group = 0;            // the largest group_size among them
  TileMemory tile_memory;              // of each thread
  double flops = 0;
  double flops_done = 0;

  PlanProgress progress() const override { return {flops, flops_done}; }

  // Contiguous keys and values are packed before anything else, each task into one page at
  // arena_offsets[task] (-1: the task is paged), but for the heads that a unit packs.
  std::vector<KvAppendTask> appends;
  std::vector<int> append_tasks;  // the task of each append
  std::vector<PackItem> packs;
  bool has_packing_units = false;
  std::vector<std::int64_t> arena_offsets;
  std::vector<void*> arena_pages;  // by task, set when the plan runs
  std::size_t arena_bytes = 0;

  std::int64_t partial_floats = 0;
  std::vector<std::int64_t> totals_offsets;  // PlannedTask::totals of tasks with a second pass
  std::int64_t totals_floats = 0;

  // The run's, while it is under way or has yielded; else null.
  WorkspaceLease workspace;
};

// A head of contiguous keys and values that a unit may pack: with this many bytes it stays in L2
// beside what else is read there.
inline constexpr std::size_t kMaxUnitHeadBytes = 1024 * 1024;
// The same for a task: its queries and outputs and all of the next task's tensors come beside it.
inline constexpr std::size_t kMaxUnitTaskBytes = 256 * 1024;

// INVALID_ARGUMENT names the task and the field.
absl::StatusOr<std::unique_ptr<CpuPlan>> MakeCpuPlan(std::span<const AttentionTask> tasks,
                                                     int num_threads);

// A plan without items for one task whose weights are wanted, and the items of its rows.
absl::StatusOr<std::unique_ptr<CpuPlan>> MakeWeightsPlan(const WeightsTask& task);

// Where the packing of a head stops that began with `token`: after kPackTokens or less, so that a
// unit of work stays short (256 tokens of 128 + 128 dims in float32: 256 KiB, 40 us), and between
// blocks, so that no two threads write the same one.
inline constexpr std::int64_t kPackTokens = 256;
inline std::int64_t PackEnd(const KvAppendTask& append, std::int64_t token) {
  const std::int64_t end =
      RoundDown<std::int64_t>(append.position + token + kPackTokens, kBlockTokens);
  return std::min(append.num_tokens, end - append.position);
}

// Cuts an append into items of one head.
void AddPackItems(const KvAppendTask& append, int index, std::vector<PackItem>* items);

}  // namespace attention::cpu
