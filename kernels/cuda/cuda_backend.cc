#include "kernels/cuda/cuda_backend.h"

#include <atomic>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/cuda/plan/plan.h"
#include "kernels/cuda/plan/plan_cache.h"
#include "kernels/cuda/plan/plan_runner.h"
#include "kernels/cuda/plan/run_memory.h"
#include "kernels/cuda/plan/staging.h"
#include "kernels/cuda/stored_rows.h"

namespace attention::cuda {
namespace {

// Where the parts of an append's upload lie.
struct AppendOffsets {
  std::size_t k, v, pages;
};

class CudaBackend final : public AttentionBackend {
 public:
  CudaBackend(std::shared_ptr<Device> device, const CudaBackendOptions& options)
      : device_(std::move(device)),
        memories_(device_),
        runner_(*device_, memories_, options.direct_bytes),
        options_(options),
        info_{.name = "cuda",
              .device = device_->properties().name,
              .isa = device_->properties().architecture,
              .num_threads = device_->properties().num_multiprocessors} {
    MakeProjections();
  }

  const BackendInfo& info() const override { return info_; }
  MemoryAllocator& memory() override { return device_->memory(); }
  MemoryAllocator& host_memory() override { return device_->host_memory(); }

  absl::Status Supports(const AttentionParams& params, std::int64_t kv_len) const override {
    const absl::Status status = AttentionBackend::Supports(params, kv_len);
    return status.ok() ? CheckLimits(params, kv_len) : status;
  }

  KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const override {
    return {page_size, static_cast<std::size_t>(MakePageLayout(geometry, page_size).page_bytes)};
  }

  std::string KernelName(const AttentionTask& task) const override {
    return absl::StrCat("cuda/", info_.isa, "/", KernelIdName(ChooseKernel(task, has_wgmma())),
                        IsSplit(task) ? absl::StrCat("/ranges", RangeKeysOf(task)) : "");
  }

  const DeviceCeilings& Ceilings() override {
    if (!ceilings_.has_value()) ceilings_ = device_->MeasureCeilings();
    return *ceilings_;
  }

  absl::StatusOr<std::unique_ptr<AttentionPlan>> Plan(
      std::span<const AttentionTask> tasks) override {
    auto plan = plans_.Plan(tasks, {.launch_flops = options_.launch_flops,
                                    .has_wgmma = has_wgmma(),
                                    .part_bytes = options_.part_bytes});
    if (!plan.ok()) return plan.status();
    return std::unique_ptr<AttentionPlan>(std::move(*plan));
  }

  absl::StatusOr<RunState> Run(AttentionPlan& base_plan,
                               const std::atomic<bool>* should_yield) override {
    auto& plan = static_cast<CudaPlan&>(base_plan);
    absl::StatusOr<RunState> state = runner_.Advance(plan, should_yield);
    if (!state.ok() || *state == RunState::kDone) runner_.End(plan, state.status());
    return state;
  }

  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override;

  absl::Status SavePages(std::span<const PageCopy> copies) override {
    for (const PageCopy& copy : copies) {
      absl::Status status = device_->CopyToHost(Stream::kCompute, copy.host, copy.page, copy.bytes);
      if (!status.ok()) return status;
    }
    return device_->Synchronize();
  }

  absl::Status RestorePages(std::span<const PageCopy> copies) override {
    for (const PageCopy& copy : copies) {
      absl::Status status =
          device_->CopyToDevice(Stream::kCompute, copy.page, copy.host, copy.bytes);
      if (!status.ok()) return status;
    }
    return device_->Synchronize();
  }

  absl::Status CopyPages(std::span<const DevicePageCopy> copies) override {
    for (const DevicePageCopy& copy : copies) {
      absl::Status status = device_->CopyOnDevice(copy.to, copy.from, copy.bytes);
      if (!status.ok()) return status;
    }
    return device_->Synchronize();
  }

  absl::Status ReadRows(std::span<const StoredRowsTask> tasks) override {
    if (absl::Status status = ValidateStoredRows(tasks); !status.ok()) return status;
    return ReadStoredRows(*this, tasks);
  }
  absl::Status WriteRows(std::span<const StoredRowsTask> tasks) override {
    if (absl::Status status = ValidateStoredRows(tasks); !status.ok()) return status;
    return WriteStoredRows(*this, tasks);
  }
  absl::Status MoveTokens(std::span<const MoveTokensTask> tasks) override {
    if (absl::Status status = ValidateMoves(tasks); !status.ok()) return status;
    return MoveStoredTokens(*this, tasks);
  }

  void Abandon() override { device_->Abandon(); }
  ProjectionBackend* projections() override { return projections_.get(); }

  absl::Status RunWeights(const WeightsTask& task) override {
    auto made = MakeWeightsPlan(task);
    if (!made.ok()) return made.status();
    CudaPlan& plan = **made;
    if (plan.probes.empty()) return absl::OkStatus();
    const absl::StatusOr<RunState> state = runner_.Advance(plan, nullptr);
    if (state.ok()) {
      const PlannedTask& planned = plan.tasks.front();
      const std::int64_t floats = (planned.weights_q_end - planned.weights_q_begin) *
                                  planned.task.params.num_q_heads * planned.task.kv_len;
      std::memcpy(task.weights, plan.memory->host_results.data() + planned.weights,
                  floats * sizeof(float));
    }
    runner_.End(plan, state.status());
    return state.status();
  }

 private:
  bool has_wgmma() const { return device_->properties().has_wgmma; }

  void MakeProjections() {
    if (options_.packing_device == nullptr) {
      info_.no_projections = "the backend was made without a device to pack them on";
      return;
    }
    auto made = MakeCudaProjections(device_, options_.packing_device, options_.projections);
    if (made.ok()) {
      projections_ = *std::move(made);
    } else {
      info_.no_projections = std::string(made.status().message());
    }
  }

  static DeviceAppend DescribeAppend(const KvAppendTask& task);
  absl::Status BeginAppends(std::span<const KvAppendTask> tasks,
                            const std::vector<AppendItem>& items, RunMemory& memory);

  std::shared_ptr<Device> device_;
  RunMemoryPool memories_;
  PlanRunner runner_;
  PlanCache plans_;
  const CudaBackendOptions options_;
  BackendInfo info_;
  std::unique_ptr<ProjectionBackend> projections_;
  std::optional<DeviceCeilings> ceilings_;
};

DeviceAppend CudaBackend::DescribeAppend(const KvAppendTask& task) {
  DeviceAppend append;
  append.num_kv_heads = task.geometry.num_kv_heads;
  append.head_dim_qk = task.geometry.head_dim_qk;
  append.head_dim_v = task.geometry.head_dim_v;
  append.dtype = task.geometry.dtype;
  append.k_dtype = GatheredType(task.k, task.k_pieces);
  append.v_dtype = GatheredType(task.v, task.v_pieces);
  append.layout = MakePageLayout(task.geometry, task.destination.page_size);
  append.position = task.position % task.destination.page_size;
  return append;
}

absl::Status CudaBackend::AppendKv(std::span<const KvAppendTask> tasks) {
  if (absl::Status status = CheckAppends(tasks); !status.ok()) return status;
  std::vector<AppendItem> items;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    AddAppendItems(static_cast<int>(i), tasks[i].geometry.num_kv_heads, tasks[i].num_tokens,
                   &items);
  }
  if (items.empty()) return absl::OkStatus();
  auto memory = memories_.Lease();
  if (!memory.ok()) return memory.status();
  const absl::Status status = BeginAppends(tasks, items, **memory);
  if (!status.ok()) {
    device_->Synchronize().IgnoreError();
    (*memory)->is_in_flight = false;
  }
  memories_.Retire(*std::move(memory));
  return status;
}

// Rows are gathered at once and appended when the device comes to it, in order with the runs that
// follow.
absl::Status CudaBackend::BeginAppends(std::span<const KvAppendTask> tasks,
                                       const std::vector<AppendItem>& items, RunMemory& memory) {
  BufferLayout upload;
  std::vector<AppendOffsets> offsets;
  for (const KvAppendTask& task : tasks) {
    const std::int64_t rows = task.num_tokens * task.geometry.num_kv_heads;
    const std::size_t k_bytes =
        rows * task.geometry.head_dim_qk * DTypeBytes(GatheredType(task.k, task.k_pieces));
    const std::size_t v_bytes =
        rows * task.geometry.head_dim_v * DTypeBytes(GatheredType(task.v, task.v_pieces));
    const std::int64_t page_size = task.destination.page_size;
    const std::int64_t num_pages =
        (task.position % page_size + task.num_tokens + page_size - 1) / page_size;
    offsets.push_back(
        {upload.Add(k_bytes), upload.Add(v_bytes), upload.Add(num_pages * sizeof(void*))});
  }
  const std::size_t appends_at = upload.Add(tasks.size() * sizeof(DeviceAppend));
  const std::size_t items_at = upload.Add(items.size() * sizeof(AppendItem));
  if (absl::Status status = memory.Reserve(upload.size(), 0, 0); !status.ok()) return status;
  if (absl::Status status = memory.ReserveEvents(0); !status.ok()) return status;

  char* host = memory.host_upload.data();
  char* device = memory.upload.data();
  auto* appends = reinterpret_cast<DeviceAppend*>(host + appends_at);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const KvAppendTask& task = tasks[i];
    new (appends + i) DeviceAppend(DescribeAppend(task));
    if (task.num_tokens == 0) continue;
    const int heads = task.geometry.num_kv_heads;
    GatherPieces(task.k, task.k_pieces, task.num_tokens, heads, task.geometry.head_dim_qk,
                 host + offsets[i].k);
    GatherPieces(task.v, task.v_pieces, task.num_tokens, heads, task.geometry.head_dim_v,
                 host + offsets[i].v);
    const std::int64_t page_size = task.destination.page_size;
    const std::int64_t first = task.position / page_size;
    const std::int64_t last = (task.position + task.num_tokens - 1) / page_size;
    std::memcpy(host + offsets[i].pages, task.destination.pages + first,
                (last - first + 1) * sizeof(void*));
    appends[i].k = device + offsets[i].k;
    appends[i].v = device + offsets[i].v;
    appends[i].pages = reinterpret_cast<char* const*>(device + offsets[i].pages);
  }
  std::memcpy(host + items_at, items.data(), items.size() * sizeof(AppendItem));
  memory.is_in_flight = true;
  absl::Status status = device_->CopyToDevice(Stream::kCompute, device, host, upload.size());
  if (!status.ok()) return status;
  status =
      device_->Launch({KernelFamily::kAppend}, static_cast<int>(items.size()),
                      AppendArguments{reinterpret_cast<const DeviceAppend*>(device + appends_at),
                                      reinterpret_cast<const AppendItem*>(device + items_at)});
  return status.ok() ? device_->Record(*memory.done, Stream::kCompute) : status;
}

}  // namespace

std::unique_ptr<AttentionBackend> MakeCudaBackend(std::shared_ptr<Device> device,
                                                  const CudaBackendOptions& options) {
  return std::make_unique<CudaBackend>(std::move(device), options);
}

}  // namespace attention::cuda
