#include "kernels/reference/reference_backend.h"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/api/rows_cursor.h"
#include "kernels/api/validate.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/divide.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_projection.h"

namespace attention::reference {
namespace {

class HeapAllocator final : public MemoryAllocator {
 public:
  void* Allocate(std::size_t bytes) override {
    return std::aligned_alloc(kCacheLineBytes, RoundUp(bytes == 0 ? 1 : bytes, kCacheLineBytes));
  }
  void Free(void* memory, std::size_t) override { std::free(memory); }
};

struct ReferencePlan final : AttentionPlan {
  std::vector<AttentionTask> tasks;
  double flops = 0;

  // How far a run has come: the rows of tasks[task] before `row` are in `result`.
  std::size_t task = 0;
  std::int64_t row = 0;
  ReferenceResult result;
  double flops_done = 0;  // of the tasks before; of all after a run has come to its end

  std::int64_t num_rows() const { return tasks[task].q_len * tasks[task].params.num_q_heads; }

  PlanProgress progress() const override {
    if (row == 0) return {flops, flops_done};
    const double share = static_cast<double>(row) / static_cast<double>(num_rows());
    return {flops, flops_done + EstimateWork(tasks[task]).flops * share};
  }
};

void StoreResult(const AttentionTask& task, const ReferenceResult& result) {
  const AttentionParams& params = task.params;
  for (std::int64_t query = 0; query < task.q_len; ++query) {
    for (int head = 0; head < params.num_q_heads; ++head) {
      const std::int64_t row = query * params.num_q_heads + head;
      for (int channel = 0; channel < params.head_dim_v; ++channel) {
        StoreElement(task.o.data, task.o.dtype,
                     query * task.o.row_stride + head * task.o.head_stride + channel,
                     static_cast<float>(result.o[row * params.head_dim_v + channel]));
      }
      if (task.lse != nullptr) task.lse[row] = static_cast<float>(result.lse[row]);
    }
  }
  for (std::size_t i = 0; i < result.column_sums.size(); ++i) {
    task.column_sums[i] = static_cast<float>(result.column_sums[i]);
  }
}

// Computes a row of the present task.
void RunRow(ReferencePlan& plan) {
  const AttentionTask& task = plan.tasks[plan.task];
  if (plan.row == 0) {
    plan.result = BeginReference(task, {.with_column_sums = task.column_sums != nullptr});
  }
  const int num_heads = task.params.num_q_heads;
  AddReferenceRow(task, plan.row / num_heads, static_cast<int>(plan.row % num_heads), &plan.result);
  ++plan.row;
}

// Stores the present task's results and goes on to the next.
void FinishTask(ReferencePlan& plan) {
  const AttentionTask& task = plan.tasks[plan.task];
  if (plan.num_rows() == 0) {
    plan.result = BeginReference(task, {.with_column_sums = task.column_sums != nullptr});
  }
  StoreResult(task, plan.result);
  plan.flops_done += EstimateWork(task).flops;
  plan.row = 0;
  ++plan.task;
}

void AppendTask(const KvAppendTask& task) {
  RowsCursor k(task.k, task.k_pieces, /*first_row=*/0);
  RowsCursor v(task.v, task.v_pieces, /*first_row=*/0);
  const ReferencePage layout{task.geometry, task.destination.page_size};
  for (std::int64_t i = 0; i < task.num_tokens; ++i) {
    const std::int64_t position = task.position + i;
    void* page = task.destination.pages[position / layout.page_size];
    const std::int64_t token = position % layout.page_size;
    for (int head = 0; head < task.geometry.num_kv_heads; ++head) {
      const char* key = k.At(i, head);
      layout.StoreRow(page, layout.KeyIndex(token, head, 0), layout.KeyScaleIndex(token, head), key,
                      k.dtype(), task.geometry.head_dim_qk);
      if (task.geometry.value_is_key_prefix) continue;
      const char* value = v.At(i, head);
      layout.StoreRow(page, layout.ValueIndex(token, head, 0), layout.ValueScaleIndex(token, head),
                      value, v.dtype(), task.geometry.head_dim_v);
    }
  }
}

// A token's row of a head, and the place of the same row in other pages or in memory.
struct RowPlace {
  std::byte* key = nullptr;
  std::byte* value = nullptr;
  std::byte* key_scale = nullptr;
  std::byte* value_scale = nullptr;
};

RowPlace PlaceInPages(const KvGeometry& geometry, const PagedKvView& pages, std::int64_t token,
                      int head) {
  const ReferencePage layout{geometry, pages.page_size};
  void* page = pages.pages[token / pages.page_size];
  const std::int64_t in_page = token % pages.page_size;
  RowPlace place;
  place.key = layout.ElementAt(page, layout.KeyIndex(in_page, head, 0));
  place.key_scale = layout.ScaleAt(page, layout.KeyScaleIndex(in_page, head));
  if (geometry.value_is_key_prefix) return place;
  place.value = layout.ElementAt(page, layout.ValueIndex(in_page, head, 0));
  place.value_scale = layout.ScaleAt(page, layout.ValueScaleIndex(in_page, head));
  return place;
}

RowPlace PlaceInRows(const KvGeometry& geometry, const StoredRows& rows, std::int64_t token,
                     int head) {
  const std::int64_t row = token * geometry.num_kv_heads + head;
  const auto bytes = static_cast<std::int64_t>(DTypeBytes(geometry.dtype));
  RowPlace place;
  place.key = rows.k + row * geometry.head_dim_qk * bytes;
  place.key_scale = reinterpret_cast<std::byte*>(rows.k_scales + row);
  if (geometry.value_is_key_prefix) return place;
  place.value = rows.v + row * geometry.head_dim_v * bytes;
  place.value_scale = reinterpret_cast<std::byte*>(rows.v_scales + row);
  return place;
}

void CopyRow(const KvGeometry& geometry, const RowPlace& from, const RowPlace& to) {
  const std::size_t bytes = DTypeBytes(geometry.dtype);
  const bool has_scales = HasRowScales(geometry.dtype);
  std::memmove(to.key, from.key, geometry.head_dim_qk * bytes);
  if (has_scales) std::memmove(to.key_scale, from.key_scale, sizeof(float));
  if (geometry.value_is_key_prefix) return;
  std::memmove(to.value, from.value, geometry.head_dim_v * bytes);
  if (has_scales) std::memmove(to.value_scale, from.value_scale, sizeof(float));
}

void CopyStoredRows(const StoredRowsTask& task, bool is_read) {
  for (std::int64_t i = 0; i < task.num_tokens; ++i) {
    for (int head = 0; head < task.geometry.num_kv_heads; ++head) {
      const RowPlace stored = PlaceInPages(task.geometry, task.pages, task.position + i, head);
      const RowPlace row = PlaceInRows(task.geometry, task.rows, i, head);
      CopyRow(task.geometry, is_read ? stored : row, is_read ? row : stored);
    }
  }
}

void MoveTask(const MoveTokensTask& task) {
  std::int64_t place = task.position;
  for (const std::int64_t token : task.tokens) {
    CopyRow(task.geometry, PlaceInPages(task.geometry, task.from, token, task.kv_head),
            PlaceInPages(task.geometry, task.to, place++, task.kv_head));
  }
}

// In about 2 ms.
double MeasureFlopsPerSecond() {
  constexpr int kTokens = 64, kDim = 64;
  const std::vector<float> rows(std::size_t{kTokens} * kDim, 1.0f);
  AttentionTask task;
  task.params = {1, 1, kDim, kDim};
  task.q_len = task.kv_len = kTokens;
  task.q = task.k = task.v =
      DenseRows(static_cast<const void*>(rows.data()), DType::kFloat32, 1, kDim);
  const auto begin = std::chrono::steady_clock::now();
  ReferenceAttention(task);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  return EstimateWork(task).flops / elapsed.count();
}

class ReferenceBackend final : public AttentionBackend {
 public:
  const BackendInfo& info() const override { return info_; }
  MemoryAllocator& memory() override { return allocator_; }

  KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const override {
    return {page_size, ReferencePage{geometry, page_size}.bytes()};
  }

  std::string KernelName(const AttentionTask&) const override { return "reference/float64"; }

  // Nobody judges a reference by its speed, but who schedules its work must know what it takes.
  const DeviceCeilings& Ceilings() override {
    if (ceilings_.flops_per_second == 0) ceilings_.flops_per_second = MeasureFlopsPerSecond();
    return ceilings_;
  }

  absl::StatusOr<std::unique_ptr<AttentionPlan>> Plan(
      std::span<const AttentionTask> tasks) override {
    if (absl::Status status = ValidateTasks(tasks); !status.ok()) return status;
    auto plan = std::make_unique<ReferencePlan>();
    for (const AttentionTask& task : tasks) {
      plan->tasks.push_back(task);
      plan->flops += EstimateWork(task).flops;
    }
    return std::unique_ptr<AttentionPlan>(std::move(plan));
  }

  // A unit of work is a row of one head.
  absl::StatusOr<RunState> Run(AttentionPlan& base_plan,
                               const std::atomic<bool>* should_yield) override {
    auto& plan = static_cast<ReferencePlan&>(base_plan);
    if (plan.task == 0 && plan.row == 0) plan.flops_done = 0;
    bool has_progressed = false;
    while (plan.task < plan.tasks.size()) {
      if (plan.row == plan.num_rows()) {
        FinishTask(plan);
        continue;
      }
      if (has_progressed && should_yield != nullptr && *should_yield) return RunState::kYielded;
      RunRow(plan);
      has_progressed = true;
    }
    plan.task = 0;
    return RunState::kDone;
  }

  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override {
    if (absl::Status status = ValidateAppends(tasks); !status.ok()) return status;
    for (const KvAppendTask& task : tasks) AppendTask(task);
    return absl::OkStatus();
  }

  absl::Status ReadRows(std::span<const StoredRowsTask> tasks) override {
    if (absl::Status status = ValidateStoredRows(tasks); !status.ok()) return status;
    for (const StoredRowsTask& task : tasks) CopyStoredRows(task, /*is_read=*/true);
    return absl::OkStatus();
  }

  absl::Status WriteRows(std::span<const StoredRowsTask> tasks) override {
    if (absl::Status status = ValidateStoredRows(tasks); !status.ok()) return status;
    for (const StoredRowsTask& task : tasks) CopyStoredRows(task, /*is_read=*/false);
    return absl::OkStatus();
  }

  absl::Status MoveTokens(std::span<const MoveTokensTask> tasks) override {
    if (absl::Status status = ValidateMoves(tasks); !status.ok()) return status;
    for (const MoveTokensTask& task : tasks) MoveTask(task);
    return absl::OkStatus();
  }

  absl::Status RunWeights(const WeightsTask& task) override {
    if (absl::Status status = ValidateWeights(task); !status.ok()) return status;
    const ReferenceResult result = ReferenceAttention(task.attention, {.with_weights = true});
    const std::int64_t row_elements = task.attention.params.num_q_heads * task.attention.kv_len;
    for (std::int64_t i = 0; i < (task.q_end - task.q_begin) * row_elements; ++i) {
      task.weights[i] = static_cast<float>(result.weights[task.q_begin * row_elements + i]);
    }
    return absl::OkStatus();
  }

  ProjectionBackend* projections() override { return projections_.get(); }

 private:
  const std::unique_ptr<ProjectionBackend> projections_ = MakeReferenceProjections();
  BackendInfo info_{.name = "reference", .device = "any", .isa = "float64", .num_threads = 1};
  HeapAllocator allocator_;
  DeviceCeilings ceilings_;
};

}  // namespace

std::unique_ptr<AttentionBackend> MakeReferenceBackend() {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace attention::reference
