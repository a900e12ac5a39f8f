#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/cuda/plan/plan.h"

namespace attention::cuda {
namespace {

absl::Status CheckHeadDim(const char* field, int dim) {
  if (dim <= kMaxHeadDim) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(field, " is ", dim, ", expected 1 to ", kMaxHeadDim, " on a GPU"));
}

absl::Status CheckHeads(const KvGeometry& geometry) {
  if (auto s = CheckHeadDim("head_dim_qk", geometry.head_dim_qk); !s.ok()) return s;
  if (auto s = CheckHeadDim("head_dim_v", geometry.head_dim_v); !s.ok()) return s;
  if (!geometry.value_is_key_prefix) return absl::OkStatus();
  return absl::UnimplementedError("value_is_key_prefix is true, expected false on a GPU");
}

absl::Status OfTask(std::size_t index, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("task ", index, ": ", status.message()));
}

}  // namespace

absl::Status CheckLimits(const AttentionParams& params, std::int64_t kv_len) {
  if (auto s = CheckHeads(params.kv_geometry()); !s.ok()) return s;
  if (params.is_tree) {
    return absl::UnimplementedError("tree is given, expected none: GPUs compute no tree of drafts");
  }
  if (kv_len <= kMaxKvLen) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("kv_len is ", kv_len, ", expected at most ", kMaxKvLen));
}

absl::Status CheckAppends(std::span<const KvAppendTask> tasks) {
  if (absl::Status status = ValidateAppends(tasks); !status.ok()) return status;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (auto s = OfTask(i, CheckHeads(tasks[i].geometry)); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CheckTasks(std::span<const AttentionTask> tasks) {
  if (absl::Status status = ValidateTasks(tasks); !status.ok()) return status;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (auto s = OfTask(i, CheckLimits(tasks[i].params, tasks[i].kv_len)); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace attention::cuda
