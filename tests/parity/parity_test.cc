// A backend against float64, over the grid of everything the contract names. Each problem runs
// contiguous and paged; both must agree to the bit.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/problem_variants.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

class ParityTest : public BackendTest {
 protected:
  void ExpectParity(const ProblemSpec& spec, std::int64_t page_size = 64) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const Expectation expected = MakeExpectation(problem);
    for (const TargetBackend& target : targets()) {
      SCOPED_TRACE(target.name);
      ExpectParityOf(*target.backend, problem, expected, page_size);
    }
  }

  void ExpectParityOfVariants(const ProblemSpec& base, std::int64_t page_size) {
    for (const ProblemSpec& spec : Variants(base)) ExpectParity(spec, page_size);
  }
};

ATTENTION_TEST_ON_BACKEND(ParityTest);

TEST_P(ParityTest, EveryVariantForMultiHeadAttention) {
  ExpectParityOfVariants({.num_q_heads = 2, .num_kv_heads = 2}, 64);
}

TEST_P(ParityTest, EveryVariantForMultiQueryAttention) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    ExpectParityOfVariants({.num_q_heads = 5,
                            .num_kv_heads = 1,
                            .dtype = dtype,
                            .kv_dtype = dtype,
                            .q_len = 19,
                            .kv_len = 67},
                           16);
  }
}

TEST_P(ParityTest, EveryVariantForGroupedQueriesAndFloat16) {
  ExpectParityOfVariants({.num_q_heads = 6,
                          .num_kv_heads = 2,
                          .dtype = DType::kFloat16,
                          .kv_dtype = DType::kFloat16,
                          .q_len = 33},
                         64);
}

// The second of these lengths is one of decoding: few rows, and keys of several ranges.
TEST_P(ParityTest, EveryVariantForGroupedQueriesAndBFloat16) {
  for (const Lengths lengths : {Lengths{11, 45}, {3, 145}}) {
    ExpectParityOfVariants({.num_q_heads = 8,
                            .num_kv_heads = 2,
                            .dtype = DType::kBFloat16,
                            .kv_dtype = DType::kBFloat16,
                            .q_len = lengths.q_len,
                            .kv_len = lengths.kv_len},
                           256);
  }
}

TEST_P(ParityTest, EveryVariantForGroupedQueriesAndRowScales) {
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
TEST_P(ParityTest, EveryVariantAcrossRanges) {
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

TEST_P(ParityTest, EveryHeadDim) {
  const int dims[] = {1, 3, 7, 16, 32, 64, 80, 96, 128, 129, 255, 256};
  std::uint32_t seed = 1;
  for (std::size_t i = 0; i < std::size(dims); ++i) {
    const int other = dims[(i * 5 + 3) % std::size(dims)];
    for (DType dtype : kKvDTypes) {
      for (const Lengths lengths : {Lengths{1, 37}, {6, 37}, {1, 77}, {20, 77}}) {
        ExpectParity({.num_q_heads = 2,
                      .num_kv_heads = 1,
                      .head_dim_qk = dims[i],
                      .head_dim_v = other,
                      .dtype = tested().query_type(dtype),
                      .kv_dtype = dtype,
                      .q_len = lengths.q_len,
                      .kv_len = lengths.kv_len,
                      .is_causal = true,
                      .seed = seed++});
      }
    }
  }
}

TEST_P(ParityTest, EveryLengthAtTheEdgesOfTilesBlocksAndRanges) {
  std::uint32_t seed = 1;
  for (std::int64_t kv_len : tested().edges) {
    for (std::int64_t q_len : tested().edges) {
      if (q_len * kv_len > 100000) continue;
      const DType dtype = kKvDTypes[seed % 5];
      ExpectParity({.num_q_heads = 1,
                    .num_kv_heads = 1,
                    .head_dim_qk = 8,
                    .head_dim_v = 8,
                    .dtype = tested().query_type(dtype),
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

TEST_P(ParityTest, PrefillOfEveryType) {
  for (DType dtype : kKvDTypes) {
    ExpectParity({.num_q_heads = 2,
                  .num_kv_heads = 1,
                  .head_dim_qk = 16,
                  .head_dim_v = 24,
                  .dtype = RowTypeFor(dtype),
                  .kv_dtype = dtype,
                  .q_len = tested().prefill.q_len,
                  .kv_len = tested().prefill.kv_len,
                  .is_causal = true},
                 256);
  }
}

// Decode: few rows take kernels of their own, for every number of rows up to a block and beyond.
TEST_P(ParityTest, EveryNumberOfRows) {
  for (int rows = 1; rows <= 34; rows += rows < 26 ? 1 : 4) {
    const DType dtype = kKvDTypes[rows % 5];
    ExpectParity({.num_q_heads = rows,
                  .num_kv_heads = 1,
                  .head_dim_qk = 24,
                  .head_dim_v = 80,
                  .dtype = tested().query_type(dtype),
                  .kv_dtype = dtype,
                  .q_len = 1,
                  .kv_len = 533,
                  .seed = static_cast<std::uint32_t>(rows)});
  }
}

TEST_P(ParityTest, EveryCombinationOfTypes) {
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

TEST_P(ParityTest, MisalignedPointers) {
  for (DType dtype : kKvDTypes) {
    for (DType bias_dtype : kDTypes) {
      ExpectParity({.dtype = RowTypeFor(dtype),
                    .kv_dtype = dtype,
                    .bias = BiasOrMask::kPerHead,
                    .bias_dtype = bias_dtype,
                    .is_misaligned = true});
    }
  }
}

TEST_P(ParityTest, EveryPageSizeAndAppendLength) {
  for (DType dtype : kKvDTypes) {
    const AttentionProblem problem({.dtype = tested().query_type(dtype),
                                    .kv_dtype = dtype,
                                    .q_len = 3,
                                    .kv_len = 531,
                                    .is_causal = true});
    for (const TargetBackend& target : targets()) {
      const TaskOutput expected = RunTask(*target.backend, problem.task());
      for (std::int64_t page_size : {16, 48, 64, 256, 1024}) {
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
TEST_P(ParityTest, PeakedSoftmax) {
  for (DType dtype : kKvDTypes) {
    ExpectParity({.dtype = tested().query_type(dtype),
                  .kv_dtype = dtype,
                  .q_len = 20,
                  .kv_len = 700,
                  .magnitude = 8});
  }
}

// Head-major copies: [head][row][dim].
RowsView HeadMajor(const RowsView& rows, std::int64_t count, int heads, int dim,
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
}

TEST_P(ParityTest, StridedRows) {
  const AttentionProblem problem({.q_len = 9, .kv_len = 40, .is_causal = true});
  AttentionTask task = problem.task();
  std::vector<float> q, k, v;
  task.q = HeadMajor(task.q, 9, 4, 32, &q);
  task.k = HeadMajor(task.k, 40, 2, 32, &k);
  task.v = HeadMajor(task.v, 40, 2, 32, &v);
  for (const TargetBackend& target : targets()) {
    SCOPED_TRACE(target.name);
    const TaskOutput expected = RunTask(*target.backend, problem.task());
    EXPECT_TRUE(SameBits(expected, RunTask(*target.backend, task)));
    std::vector<float> o(9 * 4 * 32);
    AttentionTask strided = task;
    strided.o = {o.data(), DType::kFloat32, 32, 9 * 32};
    RunTasks(*target.backend, {strided});
    for (int row = 0; row < 9; ++row) {
      for (int head = 0; head < 4; ++head) {
        for (int i = 0; i < 32; ++i) {
          ASSERT_EQ(o[(head * 9 + row) * 32 + i], expected.o((row * 4 + head) * 32 + i));
        }
      }
    }
  }
}

}  // namespace
}  // namespace attention::testing
