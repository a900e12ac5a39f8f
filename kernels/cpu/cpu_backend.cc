#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/base/thread_pool.h"
#include "kernels/cpu/huge_page_memory.h"
#include "kernels/cpu/machine_ceilings.h"
#include "kernels/cpu/plan.h"

namespace attention::cpu {
namespace {

// Below this the work is done before other threads are awake: about 10 us of one core.
constexpr double kSerialFlops = 5e5;
constexpr std::int64_t kSerialPackElements = 64 * 1024;

std::string ProcessorName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown";
}

bool IsDotFaster() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

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
  list(append.v, append.num_tokens, params.num_kv_heads, params.head_dim_v);
  list(task.q, task.q_len, params.num_q_heads, params.head_dim_qk);
}

// Hands out the units of a plan in order.
class UnitClaims {
 public:
  struct Next {
    std::int64_t index;
    bool is_claimed;
  };

  UnitClaims(std::int64_t count, int num_threads) : count_(count), num_threads_(num_threads) {}

  std::int64_t count() const { return count_; }
  std::int64_t Claim() { return next_.fetch_add(1, std::memory_order_relaxed); }

  // What the caller will compute after its present unit. The last ones are held back from no
  // thread, and the answer is a guess.
  Next ClaimNext() {
    const std::int64_t guess = next_.load(std::memory_order_relaxed);
    if (guess + num_threads_ > count_) return {guess, false};
    return {Claim(), true};
  }

 private:
  const std::int64_t count_;
  const int num_threads_;
  std::atomic<std::int64_t> next_{0};
};

class CpuBackend final : public AttentionBackend {
 public:
  CpuBackend(int num_threads, const KernelTable& kernels, bool uses_dot)
      : kernels_(kernels),
        uses_dot_(uses_dot),
        pool_(num_threads),
        info_{.name = "cpu",
              .device = ProcessorName(),
              .isa = kernels.isa,
              .num_threads = num_threads} {
    for (int thread = 0; thread < num_threads; ++thread) {
      scratch_.push_back(std::make_unique<TileScratch>());
    }
    column_sums_.resize(num_threads);
    unit_arenas_.resize(num_threads);
  }

  const BackendInfo& info() const override { return info_; }
  MemoryAllocator& memory() override { return allocator_; }

  absl::Status Supports(const AttentionParams& params) const override {
    const absl::Status status = ValidateParams(params);
    return status.ok() ? status : absl::UnimplementedError(status.message());
  }

  KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const override {
    return {page_size, MakePackedLayout(geometry, page_size).page_bytes};
  }

  std::string KernelName(const AttentionTask& task) const override {
    const std::int64_t rows = task.q_len * task.params.group_size();
    return absl::StrCat("cpu/", kernels_.isa, "/", std::string(DTypeName(task.params.kv_dtype)),
                        UsesDot(task) ? "-dot" : "", "/rows",
                        std::min<std::int64_t>(rows, kRowBlock));
  }

  const DeviceCeilings& Ceilings() override {
    if (!ceilings_.has_value()) ceilings_ = MeasureCeilings(kernels_, pool_);
    return *ceilings_;
  }

  absl::StatusOr<std::unique_ptr<AttentionPlan>> Plan(
      std::span<const AttentionTask> tasks) override {
    auto plan = MakeCpuPlan(tasks, pool_.num_threads());
    if (!plan.ok()) return plan.status();
    return std::unique_ptr<AttentionPlan>(std::move(*plan));
  }

  absl::StatusOr<RunState> Run(AttentionPlan& plan, const std::atomic<bool>* should_yield) override;
  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override;
  absl::Status RunWeights(const WeightsTask& task) override;

 private:
  // By the request alone. Queries of other types could not be rounded to bfloat16 without loss.
  bool UsesDot(const AttentionTask& task) const {
    return uses_dot_ && task.params.kv_dtype == DType::kBFloat16 &&
           task.q.dtype == DType::kBFloat16;
  }

  const AttentionKernels& KernelsOf(const PlannedTask& planned) const {
    return UsesDot(planned.task)
               ? kernels_.bfloat16_dot
               : kernels_.attention[static_cast<int>(planned.task.params.kv_dtype)];
  }

  void ParallelFor(bool is_serial, std::int64_t count, const ThreadPool::Body& body) {
    if (!is_serial) return pool_.ParallelFor(count, body);
    for (std::int64_t index = 0; index < count; ++index) body(index, 0);
  }

  // Gives the plan its workspace and packs contiguous keys and values into it.
  absl::Status Prepare(CpuPlan& plan, bool is_serial);
  void PackAll(std::span<const KvAppendTask> appends, const std::vector<PackItem>& items,
               bool is_serial);
  NextItem FirstItem(const CpuPlan& plan, const WorkUnit* unit) const;
  // `next` is what the thread does after this; null: nothing that it knows of.
  void AttendUnit(const CpuPlan& plan, const WorkUnit& unit, const WorkUnit* next, int thread);
  void AttendTask(const CpuPlan& plan, const WorkUnit& unit, const WorkUnit* next, int thread);
  void AttendClaimed(const CpuPlan& plan, UnitClaims& claims, int thread);
  void SumColumns(CpuPlan& plan, bool is_serial);

  const KernelTable& kernels_;
  const bool uses_dot_;
  HugePageAllocator allocator_;
  ThreadPool pool_;
  BackendInfo info_;
  std::optional<DeviceCeilings> ceilings_;
  std::vector<std::unique_ptr<TileScratch>> scratch_;  // by thread
  std::vector<std::vector<double>> column_sums_;       // by thread
  HugePageBuffer arena_;                               // packed keys and values of one run
  std::vector<HugePageBuffer> unit_arenas_;            // by thread: of one head of one unit
  HugePageBuffer partials_;
  HugePageBuffer lse_;
};

void CpuBackend::PackAll(std::span<const KvAppendTask> appends, const std::vector<PackItem>& items,
                         bool is_serial) {
  std::vector<PackedLayout> layouts;
  layouts.reserve(appends.size());
  for (const KvAppendTask& append : appends) {
    layouts.push_back(MakePackedLayout(append.geometry, append.destination.page_size));
  }
  ParallelFor(is_serial, static_cast<std::int64_t>(items.size()), [&](std::int64_t index, int) {
    const PackItem& item = items[index];
    kernels_.pack(appends[item.append], layouts[item.append], item.kv_head, item.token_begin,
                  item.token_end, /*is_prefetched=*/false);
  });
}

absl::Status CpuBackend::Prepare(CpuPlan& plan, bool is_serial) {
  const std::size_t partial_bytes = plan.partial_floats * sizeof(float);
  const std::size_t lse_bytes = plan.lse_floats * sizeof(float);
  bool has_memory = arena_.Reserve(plan.arena_bytes) && partials_.Reserve(partial_bytes) &&
                    lse_.Reserve(lse_bytes);
  for (HugePageBuffer& unit_arena : unit_arenas_) {
    has_memory = has_memory && (!plan.has_packing_units || unit_arena.Reserve(kHugePageBytes));
  }
  if (!has_memory) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for a workspace of ", plan.arena_bytes + partial_bytes + lse_bytes, " bytes"));
  }
  for (std::size_t i = 0; i < plan.tasks.size(); ++i) {
    if (plan.arena_offsets[i] >= 0) {
      plan.arena_pages[i] = arena_.data() + plan.arena_offsets[i];
      plan.tasks[i].pages = &plan.arena_pages[i];
    }
    if (plan.lse_offsets[i] >= 0) {
      plan.tasks[i].lse = reinterpret_cast<float*>(lse_.data()) + plan.lse_offsets[i];
    }
  }
  for (std::size_t i = 0; i < plan.appends.size(); ++i) {
    plan.appends[i].destination.pages = plan.tasks[plan.append_tasks[i]].pages;
  }
  PackAll(plan.appends, plan.packs, is_serial);
  return absl::OkStatus();
}

NextItem CpuBackend::FirstItem(const CpuPlan& plan, const WorkUnit* unit) const {
  if (unit == nullptr) return {};
  const WorkItem& item = plan.items[unit->item_begin];
  return {.task = &plan.tasks[item.task],
          .item = &item,
          .append = unit->append < 0 ? nullptr : &plan.appends[unit->append]};
}

void CpuBackend::AttendUnit(const CpuPlan& plan, const WorkUnit& unit, const WorkUnit* next,
                            int thread) {
  if (unit.is_whole_task) return AttendTask(plan, unit, next, thread);
  PlannedTask planned = plan.tasks[plan.items[unit.item_begin].task];
  const int kv_head = plan.items[unit.item_begin].kv_head;
  void* page = nullptr;
  if (unit.append >= 0) {
    // One head at the place that it would have in a page of all heads.
    page = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(unit_arenas_[thread].data()) -
                                   kv_head * planned.layout.head_bytes);
    planned.pages = &page;
    KvAppendTask append = plan.appends[unit.append];
    append.destination.pages = &page;
    // The unit before listed the rows, but for those of a thread's first.
    kernels_.pack(append, planned.layout, kv_head, 0, append.num_tokens, /*is_prefetched=*/true);
  }
  auto* partials = reinterpret_cast<float*>(partials_.data());
  for (std::int64_t index = unit.item_begin; index < unit.item_end; ++index) {
    const bool is_last = index + 1 == unit.item_end;
    const NextItem following = is_last ? FirstItem(plan, next)
                                       : NextItem{.task = &planned, .item = &plan.items[index + 1]};
    KernelsOf(planned).attend(planned, plan.items[index], following, *scratch_[thread], partials);
  }
}

void CpuBackend::AttendTask(const CpuPlan& plan, const WorkUnit& unit, const WorkUnit* next,
                            int thread) {
  PlannedTask planned = plan.tasks[plan.items[unit.item_begin].task];
  void* page = unit_arenas_[thread].data();
  planned.pages = &page;
  KvAppendTask append = plan.appends[unit.append];
  append.destination.pages = &page;
  for (int kv_head = 0; kv_head < planned.task.params.num_kv_heads; ++kv_head) {
    kernels_.pack(append, planned.layout, kv_head, 0, append.num_tokens, /*is_prefetched=*/true);
  }
  TileScratch& scratch = *scratch_[thread];
  ListOutputs(planned.task, &scratch.ahead);
  if (next != nullptr && next->append >= 0) {
    ListInputs(plan.tasks[plan.items[next->item_begin].task].task, plan.appends[next->append],
               &scratch.ahead);
  }
  for (std::int64_t index = unit.item_begin; index < unit.item_end; ++index) {
    KernelsOf(planned).attend(planned, plan.items[index], {.is_listed = true}, scratch, nullptr);
  }
}

void CpuBackend::AttendClaimed(const CpuPlan& plan, UnitClaims& claims, int thread) {
  for (std::int64_t index = claims.Claim(); index < claims.count();) {
    const UnitClaims::Next next = claims.ClaimNext();
    const WorkUnit* next_unit = next.index < claims.count() ? &plan.units[next.index] : nullptr;
    AttendUnit(plan, plan.units[index], next_unit, thread);
    index = next.is_claimed ? next.index : claims.Claim();
  }
}

void CpuBackend::SumColumns(CpuPlan& plan, bool is_serial) {
  if (plan.column_items.empty()) return;
  for (auto& sums : column_sums_) {
    sums.resize(static_cast<std::size_t>(plan.max_column_group) * kRangeTokens);
  }
  ParallelFor(is_serial, static_cast<std::int64_t>(plan.column_items.size()),
              [&](std::int64_t index, int thread) {
                const WorkItem& item = plan.column_items[index];
                const PlannedTask& planned = plan.tasks[item.task];
                KernelsOf(planned).column_sums(planned, item, *scratch_[thread],
                                               column_sums_[thread].data());
              });
}

absl::StatusOr<RunState> CpuBackend::Run(AttentionPlan& base_plan,
                                         const std::atomic<bool>* /*should_yield*/) {
  auto& plan = static_cast<CpuPlan&>(base_plan);
  const bool is_serial = plan.flops < kSerialFlops;
  if (absl::Status status = Prepare(plan, is_serial); !status.ok()) return status;
  UnitClaims claims(static_cast<std::int64_t>(plan.units.size()), pool_.num_threads());
  // An index is a thread's whole share: it claims its units itself, to know the next one early.
  ParallelFor(is_serial, is_serial ? 1 : pool_.num_threads(),
              [&](std::int64_t, int thread) { AttendClaimed(plan, claims, thread); });
  ParallelFor(is_serial, static_cast<std::int64_t>(plan.merges.size()),
              [&](std::int64_t index, int thread) {
                const MergeItem& merge = plan.merges[index];
                const PlannedTask& planned = plan.tasks[merge.tile.task];
                KernelsOf(planned).merge(planned, merge.tile, merge.row_block, *scratch_[thread],
                                         reinterpret_cast<const float*>(partials_.data()));
              });
  SumColumns(plan, is_serial);
  plan.flops_done = plan.flops;
  return RunState::kDone;
}

absl::Status CpuBackend::AppendKv(std::span<const KvAppendTask> tasks) {
  std::vector<PackItem> items;
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (absl::Status status = ValidateAppend(tasks[i]); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("task ", i, ": ", status.message()));
    }
    AddPackItems(tasks[i], static_cast<int>(i), &items);
    const KvGeometry& geometry = tasks[i].geometry;
    elements +=
        tasks[i].num_tokens * geometry.num_kv_heads * (geometry.head_dim_qk + geometry.head_dim_v);
  }
  PackAll(tasks, items, elements < kSerialPackElements);
  return absl::OkStatus();
}

absl::Status CpuBackend::RunWeights(const WeightsTask& task) {
  auto plan = MakeWeightsPlan(task);
  if (!plan.ok()) return plan.status();
  if (absl::Status status = Prepare(**plan, /*is_serial=*/false); !status.ok()) return status;
  pool_.ParallelFor(
      static_cast<std::int64_t>((*plan)->items.size()), [&](std::int64_t index, int thread) {
        const WorkItem& item = (*plan)->items[index];
        const PlannedTask& planned = (*plan)->tasks[item.task];
        KernelsOf(planned).weights(planned, item, *scratch_[thread], task.q_begin, task.weights);
      });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionBackend>> MakeCpuBackend(const CpuBackendOptions& options) {
  if (options.num_threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", options.num_threads, ", expected 0 or more"));
  }
  const int num_threads = options.num_threads > 0
                              ? options.num_threads
                              : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const KernelTable* kernels = ChooseKernels(options.highway_target);
  if (kernels == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("Highway target 0x", absl::Hex(options.highway_target), " is not available"));
  }
  const bool has_dot = kernels->bfloat16_dot.attend != nullptr;
  if (options.bfloat16_dot == BFloat16Dot::kAlways && !has_dot) {
    return absl::UnimplementedError("the bfloat16 dot product is not available");
  }
  const bool uses_dot =
      has_dot && (options.bfloat16_dot == BFloat16Dot::kAlways ||
                  (options.bfloat16_dot == BFloat16Dot::kWhereFaster && IsDotFaster()));
  return std::make_unique<CpuBackend>(num_threads, *kernels, uses_dot);
}

}  // namespace attention::cpu
