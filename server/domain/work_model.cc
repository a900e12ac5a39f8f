#include "server/domain/work_model.h"

#include <algorithm>

namespace attention::server {

WorkEstimate EstimateStep(const SessionStep& step, const KvGeometry& geometry,
                          std::int64_t length) {
  WorkEstimate work;
  // Appended rows are read and written.
  work.kv_bytes = 2.0 * static_cast<double>(step.num_tokens()) * geometry.num_kv_heads *
                  geometry.elements_per_head() * static_cast<double>(DTypeBytes(geometry.dtype));
  if (!step.attend) return work;
  const StepAttend& attend = *step.attend;
  AttentionTask task = attend.task;
  const std::int64_t attended =
      std::min(step.expected_position.value_or(length), length) + step.num_tokens();
  task.kv_len = std::min(attend.kv_end.value_or(attended), attended);
  task.kv_begin = std::min(attend.kv_begin, task.kv_len);
  task.first_query_position = attend.first_query_position.value_or(attended - task.q_len);
  work += EstimateWork(task);
  if (attend.max_weight_bytes) work += EstimateWeights(task, task.q_len);
  return work;
}

WorkEstimate EstimateWeights(const AttentionTask& task, std::int64_t rows) {
  const auto weights = static_cast<double>(rows * task.params.num_q_heads * task.kv_len);
  WorkEstimate work;
  work.flops = 2.0 * weights * task.params.head_dim_qk;
  work.io_bytes = weights * static_cast<double>(sizeof(float));
  return work;
}

void ProjectionEstimate::Add(const ProjectionTask& task) {
  // Weights are read once for all sequences of a batch, of whichever request: charged once a
  // request, as if sixteen shared the pass. Charged in full, they would keep those who could share
  // them in different batches.
  constexpr double kSharers = 16;
  if (counted_.insert(task.projection).second) {
    work_.kv_bytes += static_cast<double>(task.projection->bytes()) / kSharers;
  }
  const auto rows = static_cast<double>(task.num_rows);
  const auto in = static_cast<double>(task.projection->in_features());
  const auto out = static_cast<double>(task.projection->out_features());
  work_.flops += 2 * rows * in * out;
  work_.io_bytes += rows * (in * static_cast<double>(DTypeBytes(task.x_dtype)) +
                            out * static_cast<double>(DTypeBytes(task.y_dtype)));
}

void WorkModel::Charge(const WorkEstimate& work, std::int64_t tensor_bytes, std::size_t num_parts,
                       const PartCosts& part, AttentionRequest* request) const {
  // The cost of a request beside its arithmetic, in the engine and in the kernels (measured with
  // one key of 64 dims: 4 to 7 us).
  constexpr absl::Duration kOverhead = absl::Microseconds(5);
  const auto count = static_cast<std::int64_t>(num_parts);
  request->flops = work.flops;
  request->work = kOverhead + count * part.work + absl::Seconds(Roofline(work));
  request->bytes = tensor_bytes + count * part.bytes;
}

absl::Duration WorkModel::PartWork(const WorkEstimate& work, const PartCosts& part) const {
  return part.work + absl::Seconds(Roofline(work));
}

}  // namespace attention::server
