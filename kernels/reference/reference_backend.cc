#include "kernels/reference/reference_backend.h"

#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/divide.h"
#include "kernels/reference/reference_attention.h"

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
};

void RunTask(const AttentionTask& task) {
  const AttentionParams& params = task.params;
  const bool with_column_sums = task.column_sums != nullptr;
  const ReferenceResult result = ReferenceAttention(task, {.with_column_sums = with_column_sums});
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

void AppendTask(const KvAppendTask& task) {
  const ReferencePage layout{task.geometry, task.destination.page_size};
  for (std::int64_t i = 0; i < task.num_tokens; ++i) {
    const std::int64_t position = task.position + i;
    void* page = task.destination.pages[position / layout.page_size];
    const std::int64_t token = position % layout.page_size;
    for (int head = 0; head < task.geometry.num_kv_heads; ++head) {
      for (int dim = 0; dim < task.geometry.head_dim_qk; ++dim) {
        StoreElement(page, task.geometry.dtype, layout.KeyIndex(token, head, dim),
                     LoadElement(task.k.data, task.k.dtype,
                                 i * task.k.row_stride + head * task.k.head_stride + dim));
      }
      for (int channel = 0; channel < task.geometry.head_dim_v; ++channel) {
        StoreElement(page, task.geometry.dtype, layout.ValueIndex(token, head, channel),
                     LoadElement(task.v.data, task.v.dtype,
                                 i * task.v.row_stride + head * task.v.head_stride + channel));
      }
    }
  }
}

class ReferenceBackend final : public AttentionBackend {
 public:
  const BackendInfo& info() const override { return info_; }
  MemoryAllocator& memory() override { return allocator_; }

  absl::Status Supports(const AttentionParams& params) const override {
    const absl::Status status = ValidateParams(params);
    return status.ok() ? status : absl::UnimplementedError(status.message());
  }

  KvPageLayout PageLayout(const KvGeometry& geometry, std::int64_t page_size) const override {
    return {page_size, ReferencePage{geometry, page_size}.bytes()};
  }

  std::string KernelName(const AttentionTask&) const override { return "reference/float64"; }

  // Not worth measuring: nobody judges a reference by its speed.
  const DeviceCeilings& Ceilings() override { return ceilings_; }

  absl::StatusOr<std::unique_ptr<AttentionPlan>> Plan(
      std::span<const AttentionTask> tasks) override {
    auto plan = std::make_unique<ReferencePlan>();
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      if (absl::Status status = ValidateTask(tasks[i]); !status.ok()) {
        return absl::Status(status.code(), absl::StrCat("task ", i, ": ", status.message()));
      }
      plan->tasks.push_back(tasks[i]);
    }
    return std::unique_ptr<AttentionPlan>(std::move(plan));
  }

  absl::Status Run(AttentionPlan& plan) override {
    for (const AttentionTask& task : static_cast<ReferencePlan&>(plan).tasks) RunTask(task);
    return absl::OkStatus();
  }

  absl::Status AppendKv(std::span<const KvAppendTask> tasks) override {
    for (const KvAppendTask& task : tasks) AppendTask(task);
    return absl::OkStatus();
  }

  absl::Status RunWeights(const WeightsTask& task) override {
    const ReferenceResult result = ReferenceAttention(task.attention, {.with_weights = true});
    const std::int64_t row_elements = task.attention.params.num_q_heads * task.attention.kv_len;
    for (std::int64_t i = 0; i < (task.q_end - task.q_begin) * row_elements; ++i) {
      task.weights[i] = static_cast<float>(result.weights[task.q_begin * row_elements + i]);
    }
    return absl::OkStatus();
  }

 private:
  BackendInfo info_{.name = "reference", .device = "any", .isa = "float64", .num_threads = 1};
  HeapAllocator allocator_;
  DeviceCeilings ceilings_;
};

}  // namespace

std::unique_ptr<AttentionBackend> MakeReferenceBackend() {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace attention::reference
