// The memory of a run and how far it has come. A plan leases a workspace when its run begins and
// keeps it while the run has yielded, so other plans may run in between; at the end it goes back,
// with its pages mapped, to the next plan.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/huge_page_memory.h"

namespace attention::cpu {

// A thread's share of a run. A run that goes on has as many states as before, but any thread may
// take any of them.
struct ThreadState {
  std::unique_ptr<TileScratch> scratch = std::make_unique<TileScratch>();
  PlannedTask planned;         // of the present unit, to which the scratch refers
  HugePageBuffer tile_memory;  // of the scratch
  std::vector<double> column_sums;
  HugePageBuffer unit_arena;  // keys and values that a unit packs

  // The index of the present phase that is claimed and not finished; negative: none.
  std::int64_t claimed = -1;
  // Once a claimed unit is begun: the unit that follows it, its next item, and the heads and
  // tokens that are packed.
  bool is_begun = false;
  std::int64_t next = 0;
  bool is_next_claimed = false;
  std::int64_t item = 0;
  int packed_heads = 0;
  std::int64_t packed_tokens = 0;  // of the next head
};

enum class RunPhase { kPack, kAttend, kMerge, kSumColumns, kDone };

struct Workspace {
  HugePageBuffer arena;  // packed keys and values of contiguous tasks
  HugePageBuffer partials;
  HugePageBuffer totals;
  std::vector<ThreadState> threads;

  RunPhase phase = RunPhase::kPack;
  alignas(64) std::atomic<std::int64_t> num_claimed{0};  // of the present phase

  // Forgets the last run; the memory stays.
  void Reset();
};

class WorkspacePool;

struct ReturnWorkspace {
  std::shared_ptr<WorkspacePool> pool;
  void operator()(Workspace* workspace) const;
};
using WorkspaceLease = std::unique_ptr<Workspace, ReturnWorkspace>;

// The workspaces of one backend, as many as it ever had runs under way at once. Leases may outlive
// their backend. Thread-safe.
class WorkspacePool : public std::enable_shared_from_this<WorkspacePool> {
 public:
  explicit WorkspacePool(int num_threads) : num_threads_(num_threads) {}

  // The smallest one with an arena of that size, or the largest there is, or a new one.
  WorkspaceLease Take(std::size_t arena_bytes);

 private:
  friend struct ReturnWorkspace;

  const int num_threads_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace attention::cpu
