#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/api/validate.h"
#include "kernels/base/cpu_affinity.h"
#include "kernels/base/thread_pool.h"
#include "kernels/cpu/cpu_projections.h"
#include "kernels/cpu/huge_page_memory.h"
#include "kernels/cpu/machine_ceilings.h"
#include "kernels/cpu/plan.h"
#include "kernels/cpu/plan_runner.h"
#include "kernels/cpu/stored_rows.h"

namespace attention::cpu {
namespace {

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

absl::Status ValidateCpus(const std::vector<int>& cpus, int num_threads) {
  const auto count = static_cast<int>(cpus.size());
  if (num_threads != 0 && num_threads != count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_threads is ", num_threads, ", expected 0 or the number of cpus (", count, ")"));
  }
  const std::vector<int> available = AvailableCpus();
  for (int i = 0; i < count; ++i) {
    if (std::find(available.begin(), available.end(), cpus[i]) == available.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "cpus[", i, "] is ", cpus[i],
          ", expected one that the process may run on: ", absl::StrJoin(available, ",")));
    }
    const auto first = std::find(cpus.begin(), cpus.end(), cpus[i]) - cpus.begin();
    if (first != i) {
      return absl::InvalidArgumentError(
          absl::StrCat("cpus[", i, "] is ", cpus[i], ", expected another than cpus[", first, "]"));
    }
  }
  return absl::OkStatus();
}

class CpuBackend final : public AttentionBackend {
 public:
  // `cpus` may be empty.
  CpuBackend(int num_threads, std::span<const int> cpus, const KernelTable& kernels, bool uses_dot)
      : kernels_(kernels),
        pool_(cpus.empty() ? ThreadPool(num_threads) : ThreadPool(cpus)),
        runner_(kernels, uses_dot, pool_),
        projections_(MakeCpuProjections(pool_)),
        info_{.name = "cpu",
              .device = ProcessorName(),
              .isa = kernels.isa,
              .num_threads = num_threads} {}

  const BackendInfo& info() const override { return info_; }
  MemoryAllocator& memory() override { return allocator_; }

  KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const override {
    return {page_size, MakePackedLayout(geometry, page_size).page_bytes};
  }

  std::string KernelName(const AttentionTask& task) const override {
    const std::int64_t rows = task.q_len * task.params.group_size();
    return absl::StrCat("cpu/", kernels_.isa, "/", std::string(DTypeName(task.params.kv_dtype)),
                        runner_.UsesDot(task) ? "-dot" : "", "/rows",
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

  absl::StatusOr<RunState> Run(AttentionPlan& plan,
                               const std::atomic<bool>* should_yield) override {
    return runner_.Run(static_cast<CpuPlan&>(plan), should_yield);
  }

  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override {
    if (absl::Status status = ValidateAppends(tasks); !status.ok()) return status;
    runner_.Append(tasks);
    return absl::OkStatus();
  }

  absl::Status ReadRows(std::span<const StoredRowsTask> tasks) override {
    if (absl::Status status = ValidateStoredRows(tasks); !status.ok()) return status;
    ReadStoredRows(tasks, pool_);
    return absl::OkStatus();
  }

  absl::Status WriteRows(std::span<const StoredRowsTask> tasks) override {
    if (absl::Status status = ValidateStoredRows(tasks); !status.ok()) return status;
    WriteStoredRows(tasks, pool_);
    return absl::OkStatus();
  }

  absl::Status MoveTokens(std::span<const MoveTokensTask> tasks) override {
    if (absl::Status status = ValidateMoves(tasks); !status.ok()) return status;
    MoveStoredTokens(tasks, pool_);
    return absl::OkStatus();
  }

  absl::Status RunWeights(const WeightsTask& task) override {
    auto plan = MakeWeightsPlan(task);
    if (!plan.ok()) return plan.status();
    return runner_.RunWeights(**plan, task.q_begin, task.weights);
  }

  ProjectionBackend* projections() override { return projections_.get(); }

 private:
  const KernelTable& kernels_;
  HugePageAllocator allocator_;
  ThreadPool pool_;
  PlanRunner runner_;
  const std::unique_ptr<ProjectionBackend> projections_;
  BackendInfo info_;
  std::optional<DeviceCeilings> ceilings_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionBackend>> MakeCpuBackend(const CpuBackendOptions& options) {
  if (options.num_threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", options.num_threads, ", expected 0 or more"));
  }
  int num_threads = options.num_threads;
  if (!options.cpus.empty()) {
    if (auto s = ValidateCpus(options.cpus, num_threads); !s.ok()) return s;
    num_threads = static_cast<int>(options.cpus.size());
  } else if (num_threads == 0) {
    num_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
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
  return std::make_unique<CpuBackend>(num_threads, options.cpus, *kernels, uses_dot);
}

}  // namespace attention::cpu
