// Rows of weights and column sums, each a second pass over the keys.
#include <gmock/gmock.h>

#include <cmath>
#include <vector>

#include "kernels/reference/reference_attention.h"
#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"

namespace attention::testing {
namespace {

class WeightsTest : public BackendTest {};

ATTENTION_TEST_ON_BACKEND(WeightsTest);

std::vector<ProblemSpec> Specs() {
  return {
      {.q_len = 11, .kv_len = 45},
      {.kv_dtype = DType::kBFloat16, .q_len = 50, .kv_len = 50, .is_causal = true},
      {.kv_dtype = DType::kFloat16,
       .q_len = 30,
       .kv_len = 600,
       .window_left = 9,
       .window_right = 9},
      {.kv_dtype = DType::kInt8, .q_len = 7, .kv_len = 80},
      {.kv_dtype = DType::kFloat8E4M3, .q_len = 7, .kv_len = 80},
      {.kv_dtype = DType::kFloat8E4M3, .q_len = 7, .kv_len = 80, .is_causal = true},
      {.num_q_heads = 6,
       .q_len = 9,
       .kv_len = 1100,
       .kv_begin = 13,
       .is_causal = true,
       .window_left = 40,
       .sink_tokens = 20,
       .soft_cap = 4,
       .has_alibi = true,
       .has_sink_logits = true,
       .bias = BiasOrMask::kPerHead,
       .mask = BiasOrMask::kShared},
      // Queries before the first key see nothing.
      {.q_len = 20, .kv_len = 10, .is_causal = true},
  };
}

TEST_P(WeightsTest, RowsMatchTheReferenceAndSumToOne) {
  for (const ProblemSpec& spec : Specs()) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const auto exact = reference::ReferenceAttention(problem.StoredTask(), {.with_weights = true});
    for (const TargetBackend& target : targets()) {
      SCOPED_TRACE(target.name);
      TaskOutput output = RunTask(*target.backend, problem.task());
      WeightsTask task{.attention = problem.task(), .q_begin = 2, .q_end = spec.q_len - 1};
      const std::int64_t row_size = spec.num_q_heads * spec.kv_len;
      std::vector<float> weights((task.q_end - task.q_begin) * row_size, -1.0f);
      task.weights = weights.data();
      ASSERT_TRUE(target.backend->RunWeights(task).ok());
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const double expected = exact.weights[task.q_begin * row_size + i];
        ASSERT_NEAR(weights[i], expected, 3e-6 * std::max(expected, 1e-3)) << i;
        if (expected == 0) {
          ASSERT_EQ(weights[i], 0.0f) << i;
        }
      }
      if (spec.has_sink_logits) continue;  // a sink takes its share
      for (std::size_t row = 0; row * spec.kv_len < weights.size(); ++row) {
        double sum = 0;
        for (std::int64_t key = 0; key < spec.kv_len; ++key)
          sum += weights[row * spec.kv_len + key];
        const bool is_empty = std::isinf(output.lse[task.q_begin * spec.num_q_heads + row]);
        EXPECT_NEAR(sum, is_empty ? 0.0 : 1.0, 2e-6);
      }
    }
  }
}

TEST_P(WeightsTest, ColumnSumsMatchTheReferenceWithAndWithoutLse) {
  for (const ProblemSpec& spec : Specs()) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const auto exact =
        reference::ReferenceAttention(problem.StoredTask(), {.with_column_sums = true});
    for (const TargetBackend& target : targets()) {
      for (bool with_lse : {false, true}) {
        AttentionTask task = problem.task();
        TaskOutput output(task.params, task.q_len, task.kv_len);
        output.wants_column_sums = true;
        output.BindTo(&task);
        if (!with_lse) task.lse = nullptr;
        RunTasks(*target.backend, {task});
        for (std::size_t i = 0; i < output.column_sums.size(); ++i) {
          ASSERT_NEAR(output.column_sums[i], exact.column_sums[i],
                      4e-6 * std::max(1.0, exact.column_sums[i]))
              << target.name << " " << i;
        }
      }
    }
  }
}

TEST_P(WeightsTest, RowsOutsideTheTaskAreRefused) {
  const AttentionProblem problem({.q_len = 4});
  std::vector<float> weights(1);
  const WeightsTask task{
      .attention = problem.task(), .q_begin = 2, .q_end = 5, .weights = weights.data()};
  for (const TargetBackend& target : targets()) {
    const absl::Status status = target.backend->RunWeights(task);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << target.name;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("rows are [2, 5)"));
  }
}

}  // namespace
}  // namespace attention::testing
