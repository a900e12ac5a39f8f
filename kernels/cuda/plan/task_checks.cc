#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/cuda/plan/plan.h"

namespace attention::cuda {

absl::Status CheckKvLen(std::int64_t kv_len) {
  if (kv_len <= kMaxKvLen) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("kv_len is ", kv_len, ", expected at most ", kMaxKvLen));
}

absl::Status CheckTasks(std::span<const AttentionTask> tasks) {
  if (absl::Status status = ValidateTasks(tasks); !status.ok()) return status;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const absl::Status status = CheckKvLen(tasks[i].kv_len);
    if (status.ok()) continue;
    return absl::Status(status.code(), absl::StrCat("task ", i, ": ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace attention::cuda
