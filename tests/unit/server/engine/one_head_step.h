// A step of one head whose rows are queries, keys and values alike.
#pragma once

#include <cstdint>
#include <memory>

#include "server/cache/kv_cache.h"
#include "server/domain/attention_request.h"
#include "server/domain/row_checksums.h"

namespace attention::testing {

// Appends `num_tokens` of `rows` [.., dim] at `position`, and attends with the first `q_len` of
// them into `output` [q_len, dim]. Both must outlive the step.
inline server::SessionStep OneHeadStep(const std::shared_ptr<server::KvCache>& cache,
                                       std::int64_t position, std::int64_t num_tokens,
                                       std::int64_t q_len, int dim, const float* rows,
                                       float* output) {
  server::SessionStep step;
  step.cache = cache;
  step.expected_position = position;
  const RowsView tokens = DenseRows(static_cast<const void*>(rows), DType::kFloat32, 1, dim);
  step.append = server::StepAppend{num_tokens, tokens, tokens, {}, {}, {}};
  step.append->checksums = server::ChecksumRows(*step.append, {1, dim, dim, DType::kFloat32});
  AttentionTask& task = step.attend.emplace().task;
  task.params = {1, 1, dim, dim};
  task.params.softmax_scale = 1;
  task.q_len = q_len;
  task.q = tokens;
  task.o = DenseRows(static_cast<void*>(output), DType::kFloat32, 1, dim);
  return step;
}

}  // namespace attention::testing
