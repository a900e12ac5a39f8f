// Scores of every magnitude that float32 holds: outputs, log-sum-exps, column sums and weights are
// those of float64, and bits do not depend on what shares a tile.
#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/exact_scores.h"

namespace attention::testing {
namespace {

constexpr float kMost = std::numeric_limits<float>::max();

class ExtremeScoresTest : public BackendTest {
 protected:
  void ExpectExactScores(const ExactSpec& spec) {
    const ExactProblem problem(spec);
    for (const TargetBackend& target : targets()) {
      SCOPED_TRACE(target.name);
      ExpectExact(*target.backend, problem);
    }
  }
};

ATTENTION_TEST_ON_BACKEND(ExtremeScoresTest);

TEST_P(ExtremeScoresTest, RowsOfEqualScoresAreTheMeanOfTheirValues) {
  for (float bias : {-1e9f, -1e10f, -1e12f, -1e30f, -65504.0f, 0x1p31f, kMost, -kMost}) {
    for (DType kv_dtype : kKvDTypes) {
      for (const Lengths lengths : tested().exact_lengths) {
        ExpectExactScores({.kind = ScoreKind::kBias,
                           .dtype = RowTypeFor(kv_dtype),
                           .kv_dtype = kv_dtype,
                           .q_len = lengths.q_len,
                           .kv_len = lengths.kv_len,
                           .bias = bias});
      }
    }
  }
}

TEST_P(ExtremeScoresTest, DrawnScoresOfEveryMagnitudeAreExact) {
  for (std::uint32_t number = 0; number < tested().num_drawn; ++number) {
    ExpectExactScores(DrawnSpec(number));
  }
}

TEST_P(ExtremeScoresTest, SumsOfRowsOverSeveralRangesAreExact) {
  for (ScoreKind kind : {ScoreKind::kDots, ScoreKind::kBias, ScoreKind::kNear}) {
    ExpectExactScores({.kind = kind,
                       .num_q_heads = 3,
                       .dtype = DType::kBFloat16,
                       .kv_dtype = DType::kBFloat16,
                       .q_len = 12,
                       .kv_len = 2100});
  }
}

// As a model's second layer sees rows of padding, which its first one masked throughout.
TEST_P(ExtremeScoresTest, LargestElementsOfATypeAreScoresLikeOthers) {
  AttentionProblem problem({.num_q_heads = 1,
                            .num_kv_heads = 1,
                            .head_dim_qk = 64,
                            .head_dim_v = 8,
                            .dtype = DType::kFloat16,
                            .kv_dtype = DType::kFloat16,
                            .q_len = 1,
                            .kv_len = 2});
  for (int dim = 0; dim < 64; ++dim) {
    problem.SetQuery(0, 0, dim, 65504.0f);
    problem.SetKey(0, 0, dim, 65504.0f);
    problem.SetKey(1, 0, dim, -65504.0f);
  }
  for (int i = 0; i < 8; ++i) problem.SetValue(0, 0, i, static_cast<float>(i));
  for (const TargetBackend& target : targets()) {
    const TaskOutput output = RunTask(*target.backend, problem.task());
    for (int i = 0; i < 8; ++i) EXPECT_EQ(output.o(i), static_cast<float>(i)) << target.name;
    EXPECT_NEAR(output.lse[0], 65504.0 * 65504.0 * 8, 65504.0 * 8) << target.name;
  }
}

TEST_P(ExtremeScoresTest, AFiniteBiasOfTheTypesMinimumMasksNothingByItself) {
  AttentionProblem problem({.num_q_heads = 1,
                            .num_kv_heads = 1,
                            .head_dim_qk = 1,
                            .head_dim_v = 1,
                            .q_len = 1,
                            .kv_len = 4,
                            .bias = BiasOrMask::kShared});
  AttentionTask task = problem.task();
  const std::vector<float> bias = {-kMost, -kMost, -kMost, -kMost};
  task.bias.data = bias.data();
  problem.SetQuery(0, 0, 0, 1.0f);
  for (int key = 0; key < 4; ++key) {
    problem.SetKey(key, 0, 0, key == 0 ? -1e33f : -1e38f);
    problem.SetValue(key, 0, 0, static_cast<float>(key));
  }
  for (const TargetBackend& target : targets()) {
    const TaskOutput output = RunTask(*target.backend, task);
    EXPECT_FLOAT_EQ(output.o(0), 1.5f) << target.name;
    EXPECT_EQ(output.lse[0], -kMost) << target.name;
  }
}

TEST_P(ExtremeScoresTest, AnInfiniteSinkLogitMakesItsHeadNaNAndAFiniteOneNever) {
  const AttentionProblem problem({.q_len = 2, .kv_len = 9, .has_sink_logits = true});
  for (const TargetBackend& target : targets()) {
    SCOPED_TRACE(target.name);
    AttentionTask task = problem.task();
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> sinks = {kMost, -kMost, -infinity, infinity};
    task.sink_logits = sinks.data();
    const TaskOutput output = RunTask(*target.backend, task);
    task.sink_logits = nullptr;
    const TaskOutput without = RunTask(*target.backend, task);
    for (int i = 0; i < 32; ++i) {
      EXPECT_EQ(output.o(i), 0.0f);
      EXPECT_EQ(output.o(32 + i), without.o(32 + i));
      EXPECT_EQ(output.o(64 + i), without.o(64 + i));
      EXPECT_TRUE(std::isnan(output.o(96 + i)));
    }
    EXPECT_EQ(output.lse[0], kMost);
    EXPECT_EQ(output.lse[1], without.lse[1]);
    EXPECT_EQ(output.lse[2], without.lse[2]);
  }
}

// Rows of a tile whose scores are larger than others' take another way to the same bits that they
// have alone.
TEST_P(ExtremeScoresTest, RowsHaveTheirBitsWhateverTheirNeighboursScoresAre) {
  const std::int64_t length = tested().peaked_cuts.back();
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const TargetBackend& target : targets()) {
      SCOPED_TRACE(target.name);
      ExpectBitsOfChunks(*target.backend,
                         {.num_q_heads = 2,
                          .num_kv_heads = 1,
                          .dtype = dtype,
                          .kv_dtype = dtype,
                          .q_len = length,
                          .kv_len = length,
                          .is_causal = true,
                          .magnitude = tested().peaked_magnitude},
                         tested().peaked_cuts);
    }
  }
}

}  // namespace
}  // namespace attention::testing
