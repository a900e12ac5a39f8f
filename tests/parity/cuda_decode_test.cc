// Decoding of at most 16 rows of a KV head, which compute capability 9.0 reads by bulk copies
// (kernels/cuda/kernels/sm90/decode_bulk_copies.h) and others 16 bytes at a time: right, and the
// same bits. On a GPU both are its own.
#include <gmock/gmock.h>

#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/problem_variants.h"
#include "tests/support/quantized_pages.h"

namespace attention::testing {
namespace {

constexpr DType kKvDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kInt8, DType::kFloat8E4M3};

ProblemSpec Decode(int dim, DType kv_dtype) {
  return {.num_q_heads = 8,
          .num_kv_heads = 2,
          .head_dim_qk = dim,
          .head_dim_v = dim,
          .dtype = kv_dtype == DType::kFloat16 ? DType::kFloat16 : DType::kBFloat16,
          .kv_dtype = kv_dtype,
          .q_len = 2,
          .kv_len = 300,
          .is_causal = true};
}

void ExpectParityAndTheSameBits(const ProblemSpec& spec, std::int64_t page_size) {
  SCOPED_TRACE(spec.Describe());
  ExpectParity(CudaHopper(), spec, page_size);
  const AttentionProblem problem(spec);
  const PagedKv paged(Cuda(), problem, {.page_size = page_size});
  const PagedKv bulk_paged(CudaHopper(), problem, {.page_size = page_size});
  EXPECT_TRUE(SameBits(RunTask(Cuda(), paged.Task(problem)),
                       RunTask(CudaHopper(), bulk_paged.Task(problem))));
}

TEST(CudaDecodeTest, EveryHeadDimAndType) {
  for (int dim : {64, 128, 256}) {
    for (DType dtype : kKvDTypes) ExpectParityAndTheSameBits(Decode(dim, dtype), 64);
  }
}

TEST(CudaDecodeTest, EveryVariantOfEveryType) {
  for (DType dtype : kKvDTypes) {
    for (const ProblemSpec& spec : Variants(Decode(64, dtype)))
      ExpectParityAndTheSameBits(spec, 48);
  }
}

// Lengths at the edges of slices, tiles, ranges, and of the 32 tiles that are looked up at once.
TEST(CudaDecodeTest, EveryLength) {
  for (std::int64_t kv_len : {1, 15, 16, 17, 63, 64, 65, 127, 129, 200, 2047, 2100, 5000}) {
    for (DType dtype : {DType::kBFloat16, DType::kInt8}) {
      ProblemSpec spec = Decode(64, dtype);
      spec.num_q_heads = spec.num_kv_heads = 1;
      spec.q_len = 1;
      spec.kv_len = kv_len;
      ExpectParityAndTheSameBits(spec, 16);
    }
  }
}

TEST(CudaDecodeTest, SinksAndAWindowFarFromThem) {
  for (DType dtype : kKvDTypes) {
    for (std::int64_t sink_tokens : {5, 70, 900}) {
      ProblemSpec spec = Decode(64, dtype);
      spec.kv_len = 3000;
      spec.window_left = 150;
      spec.sink_tokens = sink_tokens;
      ExpectParityAndTheSameBits(spec, 64);
    }
  }
}

TEST(CudaDecodeTest, EveryNumberOfRows) {
  for (int group : {1, 3, 8, 16}) {
    for (DType dtype : kKvDTypes) {
      ProblemSpec spec = Decode(128, dtype);
      spec.num_kv_heads = 1;
      spec.num_q_heads = group;
      spec.q_len = 16 / group;
      ExpectParityAndTheSameBits(spec, 32);
    }
  }
}

TEST(CudaDecodeTest, BytesPastTheEndOfPagesNeverMatter) {
  for (DType dtype : kKvDTypes) {
    for (std::int64_t kv_len : {1, 15, 17, 213}) {
      ProblemSpec spec = Decode(128, dtype);
      spec.kv_len = kv_len;
      spec.is_causal = false;
      const AttentionProblem problem(spec);
      const PagedKv zeros(CudaHopper(), problem, {.page_size = 64, .poison = 0});
      const PagedKv nans(CudaHopper(), problem, {.page_size = 64, .poison = 0xff});
      const TaskOutput result = RunTask(CudaHopper(), nans.Task(problem));
      EXPECT_TRUE(SameBits(RunTask(CudaHopper(), zeros.Task(problem)), result)) << kv_len;
      EXPECT_THAT(NonFiniteRows(result), ::testing::IsEmpty());
    }
  }
}

TEST(CudaDecodeTest, WhatARowDoesNotSeeNeverMatters) {
  for (DType dtype : kKvDTypes) {
    ProblemSpec spec = Decode(64, dtype);
    spec.kv_len = 90;
    ExpectInvisibleKeysNeverMatter(CudaHopper(), spec);
    spec.window_left = 20;
    spec.sink_tokens = 3;
    ExpectInvisibleKeysNeverMatter(CudaHopper(), spec);
    spec.mask = BiasOrMask::kShared;
    ExpectInvisibleKeysNeverMatter(CudaHopper(), spec);
  }
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    ProblemSpec spec = Decode(64, dtype);
    spec.kv_len = 90;
    ExpectAnInfiniteValueStaysInItsChannel(CudaHopper(), spec, /*key=*/89);
    ExpectAnInfiniteValueStaysInItsChannel(CudaHopper(), spec, /*key=*/40);
  }
}

// A word of quantized values goes into fragments in another order than two pairs of bfloat16 do.
TEST(CudaDecodeTest, Float8GivesTheBitsOfTheSameRowsInBFloat16) {
  for (int dim : {64, 128, 256}) {
    ProblemSpec spec = Decode(dim, DType::kFloat8E4M3);
    spec.magnitude = 3;
    ExpectBitsOfBFloat16Rows(CudaHopper(), spec);
  }
}

}  // namespace
}  // namespace attention::testing
