#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/cuda/plan/plan.h"

namespace attention::cuda {

absl::Status CheckTask(const AttentionTask& task) {
  if (absl::Status status = ValidateTask(task); !status.ok()) return status;
  if (task.kv_len <= kMaxKvLen) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("kv_len is ", task.kv_len, ", expected at most ", kMaxKvLen));
}

absl::Status CheckTasks(std::span<const AttentionTask> tasks) {
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const absl::Status status = CheckTask(tasks[i]);
    if (status.ok()) continue;
    return absl::Status(status.code(), absl::StrCat("task ", i, ": ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace attention::cuda
