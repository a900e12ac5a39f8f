#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
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

absl::Status ValidateAppend(const KvAppendTask& task) {
  const KvGeometry& geometry = task.geometry;
  const PagedKvView& pages = task.destination;
  AttentionParams params;
  params.num_q_heads = params.num_kv_heads = geometry.num_kv_heads;
  params.head_dim_qk = geometry.head_dim_qk;
  params.head_dim_v = geometry.head_dim_v;
  if (absl::Status status = ValidateParams(params); !status.ok()) return status;
  if (pages.page_size < kPageGranularity || pages.page_size % kPageGranularity != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "page_size is ", pages.page_size, ", expected a positive multiple of ", kPageGranularity));
  }
  if (task.position < 0 || task.num_tokens < 0 ||
      task.num_tokens > pages.num_pages * pages.page_size - task.position) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens are [", task.position, ", ", task.position, " + ", task.num_tokens,
                     "), expected a part of [0, ", pages.num_pages * pages.page_size, ")"));
  }
  if (task.num_tokens == 0) return absl::OkStatus();
  if (pages.pages == nullptr) return absl::InvalidArgumentError("pages are missing");
  if (task.k.data == nullptr) return absl::InvalidArgumentError("k is missing");
  if (task.v.data == nullptr) return absl::InvalidArgumentError("v is missing");
  return absl::OkStatus();
}

class CpuBackend final : public AttentionBackend {
 public:
  CpuBackend(int num_threads, const KernelTable& kernels)
      : kernels_(kernels),
        pool_(num_threads),
        info_{.name = "cpu",
              .device = ProcessorName(),
              .isa = kernels.isa,
              .num_threads = num_threads} {
    for (int thread = 0; thread < num_threads; ++thread) {
      scratch_.push_back(std::make_unique<TileScratch>());
    }
    column_sums_.resize(num_threads);
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
                        "/rows", std::min<std::int64_t>(rows, kRowBlock));
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

  absl::Status Run(AttentionPlan& plan) override;
  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override;
  absl::Status RunWeights(const WeightsTask& task) override;

 private:
  const AttentionKernels& KernelsOf(const PlannedTask& planned) const {
    return kernels_.attention[static_cast<int>(planned.task.params.kv_dtype)];
  }

  void ParallelFor(bool is_serial, std::int64_t count, const ThreadPool::Body& body) {
    if (!is_serial) return pool_.ParallelFor(count, body);
    for (std::int64_t index = 0; index < count; ++index) body(index, 0);
  }

  // Gives the plan its workspace and packs contiguous keys and values into it.
  absl::Status Prepare(CpuPlan& plan, bool is_serial);
  void PackAll(std::span<const KvAppendTask> appends, const std::vector<PackItem>& items,
               bool is_serial);
  void SumColumns(CpuPlan& plan, bool is_serial);

  const KernelTable& kernels_;
  HugePageAllocator allocator_;
  ThreadPool pool_;
  BackendInfo info_;
  std::optional<DeviceCeilings> ceilings_;
  std::vector<std::unique_ptr<TileScratch>> scratch_;  // by thread
  std::vector<std::vector<double>> column_sums_;       // by thread
  HugePageBuffer arena_;                               // packed keys and values of one run
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
                  item.token_end);
  });
}

absl::Status CpuBackend::Prepare(CpuPlan& plan, bool is_serial) {
  const std::size_t partial_bytes = plan.partial_floats * sizeof(float);
  const std::size_t lse_bytes = plan.lse_floats * sizeof(float);
  if (!arena_.Reserve(plan.arena_bytes) || !partials_.Reserve(partial_bytes) ||
      !lse_.Reserve(lse_bytes)) {
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

absl::Status CpuBackend::Run(AttentionPlan& base_plan) {
  auto& plan = static_cast<CpuPlan&>(base_plan);
  const bool is_serial = plan.flops < kSerialFlops;
  if (absl::Status status = Prepare(plan, is_serial); !status.ok()) return status;
  auto* partials = reinterpret_cast<float*>(partials_.data());
  ParallelFor(is_serial, static_cast<std::int64_t>(plan.items.size()),
              [&](std::int64_t index, int thread) {
                const WorkItem& item = plan.items[index];
                const PlannedTask& planned = plan.tasks[item.task];
                KernelsOf(planned).attend(planned, item, *scratch_[thread], partials);
              });
  ParallelFor(is_serial, static_cast<std::int64_t>(plan.merges.size()),
              [&](std::int64_t index, int thread) {
                const WorkItem& item = plan.merges[index];
                const PlannedTask& planned = plan.tasks[item.task];
                KernelsOf(planned).merge(planned, item, *scratch_[thread], partials);
              });
  SumColumns(plan, is_serial);
  return absl::OkStatus();
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
  return std::make_unique<CpuBackend>(num_threads, *kernels);
}

}  // namespace attention::cpu
