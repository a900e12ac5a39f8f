// Runs plans: packs, attends, merges, sums columns, on the threads of a pool, and stops and goes on
// where it is asked to.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/base/thread_pool.h"
#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/plan.h"
#include "kernels/cpu/workspace.h"

namespace attention::cpu {

// Owned by one thread at a time, like the pool that it uses.
class PlanRunner {
 public:
  // `uses_dot`: for tasks all of bfloat16, by the dot product instruction.
  PlanRunner(const KernelTable& kernels, bool uses_dot, ThreadPool& pool);

  bool UsesDot(const AttentionTask& task) const;

  // As AttentionBackend's. RESOURCE_EXHAUSTED when there is no memory for a workspace.
  absl::StatusOr<RunState> Run(CpuPlan& plan, const std::atomic<bool>* should_yield);
  absl::Status RunWeights(CpuPlan& plan, std::int64_t q_begin, float* weights);

  // The appends are valid.
  void Append(std::span<const KvAppendTask> tasks);

 private:
  const AttentionKernels& KernelsOf(const PlannedTask& planned) const;

  // Gives the plan a workspace.
  absl::Status Begin(CpuPlan& plan);

  // Claims indices of the present phase, or goes on with the one it has: step(index, thread) says
  // whether it is done. Returns whether the phase is.
  template <typename Step>
  bool RunPhaseOf(CpuPlan& plan, std::int64_t count, YieldSignal& yield, const Step& step);
  bool RunPresentPhase(CpuPlan& plan, YieldSignal& yield);
  bool Pack(CpuPlan& plan, YieldSignal& yield);
  bool Attend(CpuPlan& plan, YieldSignal& yield);
  bool Merge(CpuPlan& plan, YieldSignal& yield);
  bool SumColumns(CpuPlan& plan, YieldSignal& yield);

  void BeginUnit(const CpuPlan& plan, std::int64_t unit, ThreadState& thread) const;
  bool PackUnit(const CpuPlan& plan, const WorkUnit& unit, void* const* pages, ThreadState& thread,
                YieldSignal& yield) const;
  bool AttendUnit(const CpuPlan& plan, ThreadState& thread, YieldSignal& yield) const;

  const KernelTable& kernels_;
  const bool uses_dot_;
  ThreadPool& pool_;
  const std::shared_ptr<WorkspacePool> workspaces_;
};

}  // namespace attention::cpu
