// Scores of every magnitude that float32 holds, on the kernels of compute capability 9.0.
#include <gmock/gmock.h>

#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/exact_scores.h"

namespace attention::testing {
namespace {

TEST(CudaExtremeScoresTest, DrawnScoresOfEveryMagnitudeAreExact) {
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

TEST(CudaExtremeScoresTest, RowsHaveTheirBitsWhateverTheirNeighboursScoresAre) {
  ExpectBitsOfChunks(CudaHopper(),
                     {.num_q_heads = 2,
                      .num_kv_heads = 1,
                      .head_dim_qk = 64,
                      .head_dim_v = 64,
                      .dtype = DType::kBFloat16,
                      .kv_dtype = DType::kBFloat16,
                      .q_len = 230,
                      .kv_len = 230,
                      .is_causal = true,
                      .magnitude = 15},
                     {0, 65, 140, 230});
}

}  // namespace
}  // namespace attention::testing
