// As extreme_scores_test.cc, for the CUDA backend: every kernel over scores of every magnitude that
// float32 holds.
#include <gmock/gmock.h>

#include <limits>
#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/exact_scores.h"

namespace attention::testing {
namespace {

constexpr float kMost = std::numeric_limits<float>::max();
constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};

TEST(CudaExtremeScoresTest, RowsOfEqualScoresAreTheMeanOfTheirValues) {
  for (float bias : {-1e10f, -1e30f, -65504.0f, kMost, -kMost}) {
    for (DType kv_dtype : kKvDTypes) {
      // Steps of one range and of several, and prompts.
      for (std::int64_t q_len : {1, 20}) {
        const ExactProblem problem({.kind = ScoreKind::kBias,
                                    .dtype = RowTypeFor(kv_dtype),
                                    .kv_dtype = kv_dtype,
                                    .q_len = q_len,
                                    .kv_len = q_len == 1 ? 300 : 70,
                                    .bias = bias});
        ExpectExact(Cuda(), problem);
      }
    }
  }
}

TEST(CudaExtremeScoresTest, DrawnScoresOfEveryMagnitudeAreExact) {
  for (std::uint32_t number = 0; number < 60; ++number) {
    const ExactProblem problem(DrawnSpec(number));
    ExpectExact(Cuda(), problem);
  }
}

TEST(CudaExtremeScoresTest, DrawnScoresOfKernelsOfHopperAreExact) {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (std::uint32_t seed = 0; seed < 4; ++seed) {
      for (std::int64_t q_len : {1, 70}) {
        const ExactProblem problem({.kind = static_cast<ScoreKind>(seed % 4),
                                    .head_dim_qk = 64,
                                    .head_dim_v = 64,
                                    .dtype = dtype,
                                    .kv_dtype = dtype,
                                    .q_len = q_len,
                                    .kv_len = 150,
                                    .is_causal = seed % 2 == 0,
                                    .seed = seed});
        ExpectExact(CudaHopper(), problem);
      }
    }
  }
}

TEST(CudaExtremeScoresTest, SumsOfRowsOverSeveralRangesAreExact) {
  for (ScoreKind kind : {ScoreKind::kDots, ScoreKind::kBias, ScoreKind::kNear}) {
    const ExactProblem problem({.kind = kind,
                                .num_q_heads = 3,
                                .dtype = DType::kBFloat16,
                                .kv_dtype = DType::kBFloat16,
                                .q_len = 12,
                                .kv_len = 2100});
    ExpectExact(Cuda(), problem);
  }
}

TEST(CudaExtremeScoresTest, RowsHaveTheirBitsWhateverTheirNeighboursScoresAre) {
  for (std::int64_t dim : {32, 64}) {
    ExpectBitsOfChunks(dim == 64 ? CudaHopper() : Cuda(),
                       {.num_q_heads = 2,
                        .num_kv_heads = 1,
                        .head_dim_qk = static_cast<int>(dim),
                        .head_dim_v = static_cast<int>(dim),
                        .dtype = DType::kBFloat16,
                        .kv_dtype = DType::kBFloat16,
                        .q_len = 230,
                        .kv_len = 230,
                        .is_causal = true,
                        .magnitude = 15},
                       {0, 65, 140, 230});
  }
}

}  // namespace
}  // namespace attention::testing
