#include "kernels/cpu/plan_runner.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace attention::cpu {
namespace {

// Below this the work is done before other threads are awake: about 10 us of one core.
constexpr double kSerialFlops = 5e5;
constexpr std::int64_t kSerialPackElements = 64 * 1024;

bool IsSerial(const CpuPlan& plan) { return plan.flops < kSerialFlops; }

// Lists rows of all heads.
void ListRows(const void* data, DType dtype, std::int64_t row_stride, std::int64_t head_stride,
              std::int64_t count, int heads, int dim, AheadList* ahead) {
  const auto bytes = static_cast<std::int64_t>(DTypeBytes(dtype));
  const bool is_dense = head_stride == dim;  // its heads are one chunk
  for (std::int64_t row = 0; row < count; ++row) {
    for (int head = 0; head < (is_dense ? 1 : heads); ++head) {
      ahead->Add(static_cast<const char*>(data) + (row * row_stride + head * head_stride) * bytes,
                 (is_dense ? heads : 1) * dim * bytes);
    }
  }
}

// Begins a list with where the task's outputs go.
void ListOutputs(const AttentionTask& task, AheadList* ahead) {
  ahead->Clear(/*is_sparse=*/true);
  ListRows(task.o.data, task.o.dtype, task.o.row_stride, task.o.head_stride, task.q_len,
           task.params.num_q_heads, task.params.head_dim_v, ahead);
}

// Lists the tensors of a task that the thread comes to next.
void ListInputs(const AttentionTask& task, const KvAppendTask& append, AheadList* ahead) {
  const AttentionParams& params = task.params;
  const auto list = [&](const RowsView& rows, std::int64_t count, int heads, int dim) {
    ListRows(rows.data, rows.dtype, rows.row_stride, rows.head_stride, count, heads, dim, ahead);
  };
  list(append.k, append.num_tokens, params.num_kv_heads, params.head_dim_qk);
  if (!params.value_is_key_prefix) {
    list(append.v, append.num_tokens, params.num_kv_heads, params.head_dim_v);
  }
  list(task.q, task.q_len, params.num_q_heads, params.head_dim_qk);
}

std::vector<PackedLayout> LayoutsOf(std::span<const KvAppendTask> appends) {
  std::vector<PackedLayout> layouts;
  layouts.reserve(appends.size());
  for (const KvAppendTask& append : appends) {
    layouts.push_back(MakePackedLayout(append.geometry, append.destination.page_size));
  }
  return layouts;
}

const WorkUnit* NextUnit(const CpuPlan& plan, const ThreadState& thread) {
  return thread.next < static_cast<std::int64_t>(plan.units.size()) ? &plan.units[thread.next]
                                                                    : nullptr;
}

NextItem FirstItem(const CpuPlan& plan, const WorkUnit* unit) {
  if (unit == nullptr) return {};
  const WorkItem& item = plan.items[unit->item_begin];
  return {.task = &plan.tasks[item.task],
          .item = &item,
          .append = unit->append < 0 ? nullptr : &plan.appends[unit->append]};
}

float* Floats(const HugePageBuffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }

// True if nothing of a phase of `count` indices is left to claim or to finish.
bool IsFinished(const Workspace& workspace, std::int64_t count) {
  return workspace.num_claimed.load(std::memory_order_relaxed) >= count &&
         std::all_of(workspace.threads.begin(), workspace.threads.end(),
                     [](const ThreadState& thread) { return thread.claimed < 0; });
}

}  // namespace

PlanRunner::PlanRunner(const KernelTable& kernels, bool uses_dot, ThreadPool& pool)
    : kernels_(kernels),
      uses_dot_(uses_dot),
      pool_(pool),
      workspaces_(std::make_shared<WorkspacePool>(pool.num_threads())) {}

// By the request alone. Queries of other types could not be rounded to bfloat16 without loss.
bool PlanRunner::UsesDot(const AttentionTask& task) const {
  return uses_dot_ && task.params.kv_dtype == DType::kBFloat16 && task.q.dtype == DType::kBFloat16;
}

const AttentionKernels& PlanRunner::KernelsOf(const PlannedTask& planned) const {
  return UsesDot(planned.task) ? kernels_.bfloat16_dot
                               : kernels_.attention[static_cast<int>(planned.task.params.kv_dtype)];
}

absl::Status PlanRunner::Begin(CpuPlan& plan) {
  plan.flops_done = 0;
  plan.workspace = workspaces_->Take(plan.arena_bytes);
  Workspace& workspace = *plan.workspace;
  const std::size_t partial_bytes = plan.partial_floats * sizeof(float);
  const std::size_t totals_bytes = plan.totals_floats * sizeof(float);
  bool has_memory = workspace.arena.Reserve(plan.arena_bytes) &&
                    workspace.partials.Reserve(partial_bytes) &&
                    workspace.totals.Reserve(totals_bytes);
  for (ThreadState& thread : workspace.threads) {
    has_memory = has_memory && thread.tile_memory.Reserve(plan.tile_memory.bytes()) &&
                 (!plan.has_packing_units || thread.unit_arena.Reserve(kHugePageBytes));
    if (has_memory) thread.scratch->Bind(plan.tile_memory, thread.tile_memory.data());
    if (plan.column_items.empty()) continue;
    thread.column_sums.resize(static_cast<std::size_t>(plan.max_column_group) * kRangeTokens);
  }
  if (!has_memory) {
    plan.workspace.reset();
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a workspace of ",
                     plan.arena_bytes + partial_bytes + totals_bytes, " bytes"));
  }
  for (std::size_t i = 0; i < plan.tasks.size(); ++i) {
    if (plan.arena_offsets[i] >= 0) {
      plan.arena_pages[i] = workspace.arena.data() + plan.arena_offsets[i];
      plan.tasks[i].pages = &plan.arena_pages[i];
    }
    if (plan.totals_offsets[i] >= 0) {
      plan.tasks[i].totals = Floats(workspace.totals) + plan.totals_offsets[i];
    }
  }
  for (std::size_t i = 0; i < plan.appends.size(); ++i) {
    plan.appends[i].destination.pages = plan.tasks[plan.append_tasks[i]].pages;
  }
  return absl::OkStatus();
}

template <typename Step>
bool PlanRunner::RunPhaseOf(CpuPlan& plan, std::int64_t count, YieldSignal& yield,
                            const Step& step) {
  if (count == 0) return true;
  Workspace& workspace = *plan.workspace;
  const auto run_thread = [&](std::int64_t index, int) {
    ThreadState& thread = workspace.threads[index];
    while (!yield.IsSet()) {
      if (thread.claimed < 0) {
        const std::int64_t claimed = workspace.num_claimed.fetch_add(1, std::memory_order_relaxed);
        if (claimed >= count) return;
        thread.claimed = claimed;
      }
      if (!step(thread.claimed, thread)) return;
      thread.claimed = thread.is_next_claimed ? thread.next : -1;
      thread.is_begun = thread.is_next_claimed = false;
    }
  };
  if (IsSerial(plan)) {
    run_thread(0, 0);
  } else {
    pool_.ParallelFor(pool_.num_threads(), run_thread);
  }
  return IsFinished(workspace, count);
}

bool PlanRunner::Pack(CpuPlan& plan, YieldSignal& yield) {
  const std::vector<PackedLayout> layouts = LayoutsOf(plan.appends);
  return RunPhaseOf(plan, static_cast<std::int64_t>(plan.packs.size()), yield,
                    [&](std::int64_t index, ThreadState&) {
                      const PackItem& item = plan.packs[index];
                      kernels_.pack(plan.appends[item.append], layouts[item.append], item.kv_head,
                                    item.token_begin, item.token_end, /*is_prefetched=*/false);
                      yield.CountUnit();
                      return true;
                    });
}

// Claims early what the thread will compute after the unit, to prefetch it. The last units are held
// back from no thread, and the answer is a guess.
void PlanRunner::BeginUnit(const CpuPlan& plan, std::int64_t unit, ThreadState& thread) const {
  std::atomic<std::int64_t>& num_claimed = plan.workspace->num_claimed;
  const auto num_units = static_cast<std::int64_t>(plan.units.size());
  thread.is_begun = true;
  thread.next = num_claimed.load(std::memory_order_relaxed);
  if (thread.next + pool_.num_threads() <= num_units) {
    // A thread that sleeps before this line finds that the others have gone on without it.
    thread.next = num_claimed.fetch_add(1, std::memory_order_relaxed);
    thread.is_next_claimed = thread.next < num_units;
  } else {
    thread.is_next_claimed = false;
  }
  thread.item = plan.units[unit].item_begin;
  thread.packed_heads = 0;
  thread.packed_tokens = 0;
}

bool PlanRunner::PackUnit(const CpuPlan& plan, const WorkUnit& unit, void* const* pages,
                          ThreadState& thread, YieldSignal& yield) const {
  const WorkItem& item = plan.items[unit.item_begin];
  const PlannedTask& planned = plan.tasks[item.task];
  KvAppendTask append = plan.appends[unit.append];
  append.destination.pages = pages;
  const int first_head = unit.is_whole_task ? 0 : item.kv_head;
  const int num_heads = unit.is_whole_task ? planned.task.params.num_kv_heads : 1;
  for (; thread.packed_heads < num_heads; ++thread.packed_heads, thread.packed_tokens = 0) {
    while (thread.packed_tokens < append.num_tokens) {
      if (yield.IsSet()) return false;
      const std::int64_t end = PackEnd(append, thread.packed_tokens);
      // The unit before listed the rows, but for those of a thread's first.
      kernels_.pack(append, planned.layout, first_head + thread.packed_heads, thread.packed_tokens,
                    end,
                    /*is_prefetched=*/true);
      thread.packed_tokens = end;
      yield.CountUnit();
    }
  }
  return true;
}

bool PlanRunner::AttendUnit(const CpuPlan& plan, ThreadState& thread, YieldSignal& yield) const {
  const WorkUnit& unit = plan.units[thread.claimed];
  const WorkUnit* next = NextUnit(plan, thread);
  PlannedTask& planned = thread.planned;
  planned = plan.tasks[plan.items[unit.item_begin].task];
  void* page = nullptr;
  if (unit.append >= 0) {
    // A single head lies at the place that it would have in a page of all heads.
    const std::size_t offset =
        unit.is_whole_task ? 0 : plan.items[unit.item_begin].kv_head * planned.layout.head_bytes;
    page = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(thread.unit_arena.data()) -
                                   offset);
    planned.pages = &page;
    if (!PackUnit(plan, unit, &page, thread, yield)) return false;
  }
  AheadList& ahead = thread.scratch->ahead;
  if (unit.is_whole_task) {
    ListOutputs(planned.task, &ahead);
    if (next != nullptr && next->append >= 0) {
      ListInputs(plan.tasks[plan.items[next->item_begin].task].task, plan.appends[next->append],
                 &ahead);
    }
  }
  float* partials = Floats(plan.workspace->partials);
  for (; thread.item < unit.item_end; ++thread.item) {
    const bool is_last = thread.item + 1 == unit.item_end;
    NextItem following{.is_listed = true};
    if (!unit.is_whole_task) {
      following = is_last ? FirstItem(plan, next)
                          : NextItem{.task = &planned, .item = &plan.items[thread.item + 1]};
    }
    if (!KernelsOf(planned).attend(planned, plan.items[thread.item], following, yield,
                                   *thread.scratch, partials)) {
      return false;
    }
  }
  return true;
}

bool PlanRunner::Attend(CpuPlan& plan, YieldSignal& yield) {
  return RunPhaseOf(plan, static_cast<std::int64_t>(plan.units.size()), yield,
                    [&](std::int64_t index, ThreadState& thread) {
                      if (!thread.is_begun) BeginUnit(plan, index, thread);
                      return AttendUnit(plan, thread, yield);
                    });
}

bool PlanRunner::Merge(CpuPlan& plan, YieldSignal& yield) {
  return RunPhaseOf(plan, static_cast<std::int64_t>(plan.merges.size()), yield,
                    [&](std::int64_t index, ThreadState& thread) {
                      const MergeItem& merge = plan.merges[index];
                      const PlannedTask& planned = plan.tasks[merge.tile.task];
                      return KernelsOf(planned).merge(planned, merge.tile, merge.row_block, yield,
                                                      *thread.scratch,
                                                      Floats(plan.workspace->partials));
                    });
}

bool PlanRunner::SumColumns(CpuPlan& plan, YieldSignal& yield) {
  return RunPhaseOf(plan, static_cast<std::int64_t>(plan.column_items.size()), yield,
                    [&](std::int64_t index, ThreadState& thread) {
                      const WorkItem& item = plan.column_items[index];
                      const PlannedTask& planned = plan.tasks[item.task];
                      return KernelsOf(planned).column_sums(planned, item, yield, *thread.scratch,
                                                            thread.column_sums.data());
                    });
}

bool PlanRunner::RunPresentPhase(CpuPlan& plan, YieldSignal& yield) {
  switch (plan.workspace->phase) {
    case RunPhase::kPack:
      return Pack(plan, yield);
    case RunPhase::kAttend:
      return Attend(plan, yield);
    case RunPhase::kMerge:
      return Merge(plan, yield);
    case RunPhase::kSumColumns:
      return SumColumns(plan, yield);
    case RunPhase::kDone:
      break;
  }
  return true;
}

absl::StatusOr<RunState> PlanRunner::Run(CpuPlan& plan, const std::atomic<bool>* should_yield) {
  if (plan.workspace == nullptr) {
    if (absl::Status status = Begin(plan); !status.ok()) return status;
  }
  YieldSignal yield(should_yield);
  Workspace& workspace = *plan.workspace;
  while (workspace.phase != RunPhase::kDone) {
    if (!RunPresentPhase(plan, yield)) {
      double flops = 0;
      for (const ThreadState& thread : workspace.threads) flops += thread.scratch->flops;
      plan.flops_done = std::min(flops, plan.flops);
      return RunState::kYielded;
    }
    workspace.phase = static_cast<RunPhase>(static_cast<int>(workspace.phase) + 1);
    workspace.num_claimed.store(0, std::memory_order_relaxed);
  }
  plan.flops_done = plan.flops;
  plan.workspace.reset();
  return RunState::kDone;
}

absl::Status PlanRunner::RunWeights(CpuPlan& plan, std::int64_t q_begin, float* weights) {
  if (absl::Status status = Begin(plan); !status.ok()) return status;
  YieldSignal never(nullptr);
  Pack(plan, never);
  std::vector<ThreadState>& threads = plan.workspace->threads;
  pool_.ParallelFor(
      static_cast<std::int64_t>(plan.items.size()), [&](std::int64_t index, int thread) {
        const WorkItem& item = plan.items[index];
        const PlannedTask& planned = plan.tasks[item.task];
        KernelsOf(planned).weights(planned, item, *threads[thread].scratch, q_begin, weights);
      });
  plan.workspace.reset();
  return absl::OkStatus();
}

void PlanRunner::Append(std::span<const KvAppendTask> tasks) {
  std::vector<PackItem> items;
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    AddPackItems(tasks[i], static_cast<int>(i), &items);
    const KvGeometry& geometry = tasks[i].geometry;
    elements += tasks[i].num_tokens * geometry.num_kv_heads * geometry.elements_per_head();
  }
  const std::vector<PackedLayout> layouts = LayoutsOf(tasks);
  const auto pack = [&](std::int64_t index, int) {
    const PackItem& item = items[index];
    kernels_.pack(tasks[item.append], layouts[item.append], item.kv_head, item.token_begin,
                  item.token_end, /*is_prefetched=*/false);
  };
  const auto count = static_cast<std::int64_t>(items.size());
  if (elements >= kSerialPackElements) return pool_.ParallelFor(count, pack);
  for (std::int64_t index = 0; index < count; ++index) pack(index, 0);
}

}  // namespace attention::cpu
