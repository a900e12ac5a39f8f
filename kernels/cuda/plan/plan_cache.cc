#include "kernels/cuda/plan/plan_cache.h"

#include <algorithm>
#include <utility>

namespace attention::cuda {
namespace {

bool IsAlikeIn(const AttentionParams& a, const AttentionParams& b) {
  return a.num_q_heads == b.num_q_heads && a.num_kv_heads == b.num_kv_heads &&
         a.head_dim_qk == b.head_dim_qk && a.head_dim_v == b.head_dim_v && a.dtype == b.dtype &&
         a.kv_dtype == b.kv_dtype && a.softmax_scale == b.softmax_scale &&
         a.soft_cap == b.soft_cap && a.is_causal == b.is_causal && a.window_left == b.window_left &&
         a.window_right == b.window_right && a.sink_tokens == b.sink_tokens;
}

// Both absent, or both there.
bool IsAlikeIn(const void* a, const void* b) { return (a == nullptr) == (b == nullptr); }

template <typename Rows>
bool AreRowsAlike(const Rows& a, const Rows& b) {
  return IsAlikeIn(a.data, b.data) && a.dtype == b.dtype;
}

template <typename View>
bool AreBiasesOrMasksAlike(const View& a, const View& b) {
  return IsAlikeIn(a.data, b.data) && (a.head_stride == 0) == (b.head_stride == 0) &&
         (a.row_stride == 0) == (b.row_stride == 0) && a.key_stride == b.key_stride;
}

}  // namespace

bool IsAlike(const AttentionTask& a, const AttentionTask& b) {
  return IsAlikeIn(a.params, b.params) && a.q_len == b.q_len && a.kv_len == b.kv_len &&
         a.kv_begin == b.kv_begin && a.first_query_position == b.first_query_position &&
         AreRowsAlike(a.q, b.q) && AreRowsAlike(a.o, b.o) && AreRowsAlike(a.k, b.k) &&
         AreRowsAlike(a.v, b.v) && IsAlikeIn(a.kv_pages.pages, b.kv_pages.pages) &&
         a.kv_pages.page_size == b.kv_pages.page_size && IsAlikeIn(a.lse, b.lse) &&
         IsAlikeIn(a.column_sums, b.column_sums) && IsAlikeIn(a.alibi_slopes, b.alibi_slopes) &&
         IsAlikeIn(a.sink_logits, b.sink_logits) && AreBiasesOrMasksAlike(a.bias, b.bias) &&
         a.bias.dtype == b.bias.dtype && AreBiasesOrMasksAlike(a.mask, b.mask);
}

absl::StatusOr<std::unique_ptr<CudaPlan>> PlanCache::Plan(std::span<const AttentionTask> tasks,
                                                          const PlanOptions& options) {
  if (!IsLast(tasks)) {
    auto plan = MakeCudaPlan(tasks, options);
    if (plan.ok()) last_ = static_cast<const PlanShape&>(**plan);
    return plan;
  }
  if (absl::Status status = CheckTasks(tasks); !status.ok()) return status;
  ++num_hits_;
  auto plan = std::make_unique<CudaPlan>();
  static_cast<PlanShape&>(*plan) = *last_;
  for (std::size_t i = 0; i < tasks.size(); ++i) plan->tasks[i].task = tasks[i];
  return plan;
}

bool PlanCache::IsLast(std::span<const AttentionTask> tasks) const {
  return last_.has_value() &&
         std::equal(tasks.begin(), tasks.end(), last_->tasks.begin(), last_->tasks.end(),
                    [](const AttentionTask& task, const PlannedTask& planned) {
                      return IsAlike(task, planned.task);
                    });
}

}  // namespace attention::cuda
