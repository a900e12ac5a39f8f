// The CUDA backend against float64, its kernels executed on the host (tests/simt) or on a GPU: the
// grid of the CPU backend's parity test. Contiguous and paged keys must agree to the bit.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/problem_variants.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};

void ExpectParity(const ProblemSpec& spec, std::int64_t page_size = 64) {
  ExpectParity(Cuda(), spec, page_size);
}

void ExpectParityOfVariants(const ProblemSpec& base, std::int64_t page_size) {
  for (const ProblemSpec& spec : Variants(base)) ExpectParity(spec, page_size);
}

TEST(CudaParityTest, EveryVariantInFloat32) {
  ExpectParityOfVariants({.num_q_heads = 2, .num_kv_heads = 2}, 64);
}

TEST(CudaParityTest, EveryVariantForMultiQueryAttentionInBFloat16) {
  ExpectParityOfVariants({.num_q_heads = 5,
                          .num_kv_heads = 1,
                          .dtype = DType::kBFloat16,
                          .kv_dtype = DType::kBFloat16,
                          .q_len = 19,
                          .kv_len = 67},
                         16);
}

TEST(CudaParityTest, EveryVariantForGroupedQueriesAndFloat16) {
  ExpectParityOfVariants({.num_q_heads = 6,
                          .num_kv_heads = 2,
                          .dtype = DType::kFloat16,
                          .kv_dtype = DType::kFloat16,
                          .q_len = 33},
                         64);
}

TEST(CudaParityTest, EveryVariantForDecodeStepsInBFloat16) {
  ExpectParityOfVariants({.num_q_heads = 8,
                          .num_kv_heads = 2,
                          .dtype = DType::kBFloat16,
                          .kv_dtype = DType::kBFloat16,
                          .q_len = 3,
                          .kv_len = 145},
                         256);
}

TEST(CudaParityTest, EveryVariantForGroupedQueriesAndRowScales) {
  for (DType dtype : {DType::kInt8, DType::kFloat8E4M3}) {
    ExpectParityOfVariants({.num_q_heads = 8,
                            .num_kv_heads = 2,
                            .dtype = DType::kBFloat16,
                            .kv_dtype = dtype,
                            .q_len = 11,
                            .kv_len = 45},
                           64);
  }
}

// The widest windows here end inside other ranges than they begin in.
TEST(CudaParityTest, EveryVariantAcrossRanges) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (ProblemSpec spec : Variants({.num_q_heads = 2,
                            .num_kv_heads = 1,
                            .head_dim_qk = 16,
                            .head_dim_v = 16,
                            .dtype = dtype,
                            .kv_dtype = dtype,
                            .q_len = 5,
                            .kv_len = 1100})) {
      if (spec.window_left > 8) spec.window_left += 600;
      ExpectParity(spec, 256);
    }
  }
}

TEST(CudaParityTest, EveryHeadDim) {
  const int dims[] = {1, 3, 7, 16, 32, 64, 80, 96, 128, 129, 255, 256};
  std::uint32_t seed = 1;
  for (std::size_t i = 0; i < std::size(dims); ++i) {
    const int other = dims[(i * 5 + 3) % std::size(dims)];
    for (DType dtype : kKvDTypes) {
      for (std::int64_t q_len : {1, 20}) {
        ExpectParity({.num_q_heads = 2,
                      .num_kv_heads = 1,
                      .head_dim_qk = dims[i],
                      .head_dim_v = other,
                      .dtype = RowTypeFor(dtype),
                      .kv_dtype = dtype,
                      .q_len = q_len,
                      .kv_len = 77,
                      .is_causal = true,
                      .seed = seed++});
      }
    }
  }
}

TEST(CudaParityTest, EveryLengthAtTheEdgesOfTilesAndRanges) {
  const std::int64_t lengths[] = {0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257, 700};
  std::uint32_t seed = 1;
  for (std::int64_t kv_len : lengths) {
    for (std::int64_t q_len : lengths) {
      if (q_len * kv_len > 100000) continue;
      const DType dtype = kKvDTypes[seed % 5];
      ExpectParity({.num_q_heads = 1,
                    .num_kv_heads = 1,
                    .head_dim_qk = 8,
                    .head_dim_v = 8,
                    .dtype = RowTypeFor(dtype),
                    .kv_dtype = dtype,
                    .q_len = q_len,
                    .kv_len = kv_len,
                    .is_causal = seed % 2 == 0,
                    .seed = seed},
                   16);
      ++seed;
    }
  }
}

TEST(CudaParityTest, LongPromptOfEveryType) {
  for (DType dtype : kKvDTypes) {
    ExpectParity({.num_q_heads = 2,
                  .num_kv_heads = 1,
                  .head_dim_qk = 16,
                  .head_dim_v = 24,
                  .dtype = RowTypeFor(dtype),
                  .kv_dtype = dtype,
                  .q_len = 300,
                  .kv_len = 700,
                  .is_causal = true},
                 256);
  }
}

TEST(CudaParityTest, EveryNumberOfRows) {
  for (int rows = 1; rows <= 34; rows += rows < 18 ? 1 : 4) {
    const DType dtype = kKvDTypes[rows % 5];
    ExpectParity({.num_q_heads = rows,
                  .num_kv_heads = 1,
                  .head_dim_qk = 24,
                  .head_dim_v = 80,
                  .dtype = RowTypeFor(dtype),
                  .kv_dtype = dtype,
                  .q_len = 1,
                  .kv_len = 533,
                  .seed = static_cast<std::uint32_t>(rows)});
  }
}

TEST(CudaParityTest, EveryCombinationOfTypes) {
  std::uint32_t seed = 1;
  for (DType dtype : kDTypes) {
    for (DType kv_dtype : kKvDTypes) {
      for (DType row_dtype : kDTypes) {
        ExpectParity({.head_dim_qk = 20,
                      .head_dim_v = 17,
                      .dtype = dtype,
                      .kv_dtype = kv_dtype,
                      .kv_row_dtype = row_dtype,
                      .is_causal = true,
                      .seed = seed++});
      }
    }
  }
}

TEST(CudaParityTest, MisalignedPointers) {
  for (DType dtype : kKvDTypes) {
    for (DType bias_dtype : kDTypes) {
      ExpectParity({.dtype = RowTypeFor(dtype),
                    .kv_dtype = dtype,
                    .bias = Plane::kPerHead,
                    .bias_dtype = bias_dtype,
                    .is_misaligned = true});
    }
  }
}

TEST(CudaParityTest, EveryPageSizeAndAppendLength) {
  for (DType dtype : kKvDTypes) {
    const AttentionProblem problem({.dtype = RowTypeFor(dtype),
                                    .kv_dtype = dtype,
                                    .q_len = 3,
                                    .kv_len = 331,
                                    .is_causal = true});
    const TaskOutput expected = RunTask(Cuda(), problem.task());
    for (std::int64_t page_size : {16, 48, 64, 256}) {
      for (std::int64_t append_tokens : {0, 1, 7, 100}) {
        const PagedKv paged(Cuda(), problem,
                            {.page_size = page_size, .seed = 5, .append_tokens = append_tokens});
        EXPECT_TRUE(SameBits(expected, RunTask(Cuda(), paged.Task(problem))))
            << "page_size " << page_size << " append_tokens " << append_tokens;
      }
    }
  }
}

// Large scores: exponentials underflow and one key takes nearly all the weight.
TEST(CudaParityTest, PeakedSoftmax) {
  for (DType dtype : kKvDTypes) {
    ExpectParity({.dtype = RowTypeFor(dtype),
                  .kv_dtype = dtype,
                  .q_len = 20,
                  .kv_len = 700,
                  .magnitude = 8});
  }
}

TEST(CudaParityTest, StridedRows) {
  const AttentionProblem problem({.q_len = 9, .kv_len = 40, .is_causal = true});
  AttentionTask task = problem.task();
  const TaskOutput expected = RunTask(Cuda(), task);
  // Head-major copies: [head][row][dim].
  const auto transpose = [](const RowsView& rows, std::int64_t count, int heads, int dim,
                            std::vector<float>* out) {
    for (int head = 0; head < heads; ++head) {
      for (std::int64_t row = 0; row < count; ++row) {
        for (int i = 0; i < dim; ++i) {
          out->push_back(LoadElement(rows.data, rows.dtype,
                                     row * rows.row_stride + head * rows.head_stride + i));
        }
      }
    }
    return RowsView{out->data(), DType::kFloat32, dim, count * dim};
  };
  std::vector<float> q, k, v, o(9 * 4 * 32);
  task.q = transpose(task.q, 9, 4, 32, &q);
  task.k = transpose(task.k, 40, 2, 32, &k);
  task.v = transpose(task.v, 40, 2, 32, &v);
  task.o = {o.data(), DType::kFloat32, 32, 9 * 32};
  RunTasks(Cuda(), {task});
  for (int row = 0; row < 9; ++row) {
    for (int head = 0; head < 4; ++head) {
      for (int i = 0; i < 32; ++i) {
        ASSERT_EQ(o[(head * 9 + row) * 32 + i], expected.o((row * 4 + head) * 32 + i));
      }
    }
  }
}

}  // namespace
}  // namespace attention::testing
