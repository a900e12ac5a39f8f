// The CPU backend against float64, over the grid of everything the contract names. Each problem
// runs on every instruction set, contiguous and paged; both must agree to the bit.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/cpu_targets.h"
#include "tests/support/problem_variants.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};

// Of queries and outputs beside a cache of that type.
DType RowTypeFor(DType kv_dtype) { return HasRowScales(kv_dtype) ? DType::kBFloat16 : kv_dtype; }

void ExpectParity(const ProblemSpec& spec, std::int64_t page_size = 64) {
  SCOPED_TRACE(spec.Describe());
  AttentionProblem problem(spec);
  const Expectation expected = MakeExpectation(problem);
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    const TaskOutput contiguous = RunTask(*target.backend, problem.task());
    EXPECT_EQ(FindMismatch(expected, contiguous), "");
    const PagedKv paged(*target.backend, problem, {.page_size = page_size, .seed = spec.seed});
    EXPECT_TRUE(SameBits(contiguous, RunTask(*target.backend, paged.Task(problem))))
        << "pages of " << page_size << " give other bits";
  }
}

TEST(ParityTest, EveryVariantForMultiHeadAttention) {
  for (const ProblemSpec& spec : Variants({.num_q_heads = 2, .num_kv_heads = 2})) {
    ExpectParity(spec);
  }
}

TEST(ParityTest, EveryVariantForMultiQueryAttention) {
  for (const ProblemSpec& spec :
       Variants({.num_q_heads = 5, .num_kv_heads = 1, .q_len = 19, .kv_len = 67})) {
    ExpectParity(spec, 16);
  }
}

TEST(ParityTest, EveryVariantForGroupedQueriesAndFloat16) {
  for (const ProblemSpec& spec : Variants({.num_q_heads = 6,
                                 .num_kv_heads = 2,
                                 .dtype = DType::kFloat16,
                                 .kv_dtype = DType::kFloat16,
                                 .q_len = 33})) {
    ExpectParity(spec);
  }
}

TEST(ParityTest, EveryVariantForGroupedQueriesAndBFloat16) {
  for (const ProblemSpec& spec : Variants({.num_q_heads = 8,
                                 .num_kv_heads = 2,
                                 .dtype = DType::kBFloat16,
                                 .kv_dtype = DType::kBFloat16,
                                 .q_len = 11,
                                 .kv_len = 45})) {
    ExpectParity(spec, 256);
  }
}

TEST(ParityTest, EveryVariantForGroupedQueriesAndRowScales) {
  for (DType dtype : {DType::kInt8, DType::kFloat8E4M3}) {
    for (const ProblemSpec& spec : Variants({.num_q_heads = 8,
                                   .num_kv_heads = 2,
                                   .dtype = DType::kBFloat16,
                                   .kv_dtype = dtype,
                                   .q_len = 11,
                                   .kv_len = 45})) {
      ExpectParity(spec, 64);
    }
  }
}

// The widest windows here end inside other ranges than they begin in.
TEST(ParityTest, EveryVariantAcrossRanges) {
  for (ProblemSpec spec : Variants({.num_q_heads = 2,
                          .num_kv_heads = 1,
                          .head_dim_qk = 16,
                          .head_dim_v = 16,
                          .q_len = 5,
                          .kv_len = 1100})) {
    if (spec.window_left > 8) spec.window_left += 600;
    ExpectParity(spec, 256);
  }
}

TEST(ParityTest, EveryHeadDim) {
  const int dims[] = {1, 3, 7, 16, 32, 64, 80, 96, 128, 129, 255, 256};
  std::uint32_t seed = 1;
  for (std::size_t i = 0; i < std::size(dims); ++i) {
    const int other = dims[(i * 5 + 3) % std::size(dims)];
    for (DType dtype : kKvDTypes) {
      for (std::int64_t q_len : {1, 6}) {
        ExpectParity({.num_q_heads = 2,
                      .num_kv_heads = 1,
                      .head_dim_qk = dims[i],
                      .head_dim_v = other,
                      .kv_dtype = dtype,
                      .q_len = q_len,
                      .kv_len = 37,
                      .is_causal = true,
                      .seed = seed++});
      }
    }
  }
}

TEST(ParityTest, EveryLengthAtTheEdgesOfBlocksAndRanges) {
  const std::int64_t lengths[] = {0, 1, 15, 16, 17, 31, 97, 511, 512, 513, 1100};
  std::uint32_t seed = 1;
  for (std::int64_t kv_len : lengths) {
    for (std::int64_t q_len : lengths) {
      if (q_len * kv_len > 100000) continue;
      ExpectParity({.num_q_heads = 1,
                    .num_kv_heads = 1,
                    .head_dim_qk = 8,
                    .head_dim_v = 8,
                    .kv_dtype = kKvDTypes[seed % 5],
                    .q_len = q_len,
                    .kv_len = kv_len,
                    .is_causal = seed % 2 == 0,
                    .seed = seed},
                   16);
      ++seed;
    }
  }
}

TEST(ParityTest, LongPromptOfEveryType) {
  for (DType dtype : kKvDTypes) {
    ExpectParity({.num_q_heads = 2,
                  .num_kv_heads = 1,
                  .head_dim_qk = 16,
                  .head_dim_v = 24,
                  .dtype = RowTypeFor(dtype),
                  .kv_dtype = dtype,
                  .q_len = 600,
                  .kv_len = 1100,
                  .is_causal = true},
                 256);
  }
}

// Decode: few rows take kernels of their own, for every number of rows up to a block and beyond.
TEST(ParityTest, EveryNumberOfRows) {
  for (int rows = 1; rows <= 26; ++rows) {
    ExpectParity({.num_q_heads = rows,
                  .num_kv_heads = 1,
                  .head_dim_qk = 24,
                  .head_dim_v = 80,
                  .kv_dtype = kKvDTypes[rows % 5],
                  .q_len = 1,
                  .kv_len = 533,
                  .seed = static_cast<std::uint32_t>(rows)});
  }
}

TEST(ParityTest, EveryCombinationOfTypes) {
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

TEST(ParityTest, MisalignedPointers) {
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

TEST(ParityTest, EveryPageSizeAndAppendLength) {
  for (DType dtype : kKvDTypes) {
    AttentionProblem problem({.kv_dtype = dtype, .q_len = 3, .kv_len = 531, .is_causal = true});
    for (const TargetBackend& target : CpuTargets()) {
      const TaskOutput expected = RunTask(*target.backend, problem.task());
      for (std::int64_t page_size : {16, 64, 256, 1024}) {
        for (std::int64_t append_tokens : {0, 1, 7, 100}) {
          const PagedKv paged(*target.backend, problem,
                              {.page_size = page_size, .seed = 5, .append_tokens = append_tokens});
          EXPECT_TRUE(SameBits(expected, RunTask(*target.backend, paged.Task(problem))))
              << target.name << " page_size " << page_size << " append_tokens " << append_tokens;
        }
      }
    }
  }
}

// Large scores: exponentials underflow and one key takes nearly all the weight.
TEST(ParityTest, PeakedSoftmax) {
  for (DType dtype : kKvDTypes) {
    ExpectParity({.kv_dtype = dtype, .q_len = 20, .kv_len = 700, .magnitude = 8});
  }
}

TEST(ParityTest, StridedRows) {
  AttentionProblem problem({.q_len = 9, .kv_len = 40, .is_causal = true});
  // Head-major copies: [head][row][dim].
  AttentionTask task = problem.task();
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
  std::vector<float> q, k, v;
  task.q = transpose(task.q, 9, 4, 32, &q);
  task.k = transpose(task.k, 40, 2, 32, &k);
  task.v = transpose(task.v, 40, 2, 32, &v);
  for (const TargetBackend& target : CpuTargets()) {
    EXPECT_TRUE(SameBits(RunTask(*target.backend, problem.task()), RunTask(*target.backend, task)));
  }
}

}  // namespace
}  // namespace attention::testing
