// Head dims above 256, and latent caches, whose values are the first dims of their keys: on every
// instruction set, over caches of every type.
#include <gmock/gmock.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_backend.h"
#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/problem_variants.h"

namespace attention::testing {
namespace {

void ExpectParityOnAll(const ProblemSpec& spec, std::int64_t page_size = 48) {
  SCOPED_TRACE(spec.Describe());
  const AttentionProblem problem(spec);
  const Expectation expected = MakeExpectation(problem);
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    ExpectParityOf(*target.backend, problem, expected, page_size);
  }
}

ProblemSpec Latent(int head_dim_qk, int head_dim_v, DType kv_dtype) {
  return {.num_q_heads = 5,
          .num_kv_heads = 1,
          .head_dim_qk = head_dim_qk,
          .head_dim_v = head_dim_v,
          .dtype = RowTypeFor(kv_dtype),
          .kv_dtype = kv_dtype,
          .value_is_key_prefix = true,
          .is_causal = true};
}

// Different in every respect that an item of work may depend on, beside narrower heads.
std::vector<ProblemSpec> MixedWideSpecs() {
  const int dims[][2] = {{512, 512}, {576, 512}, {300, 277}, {64, 64}, {257, 40}, {40, 300}};
  std::vector<ProblemSpec> specs;
  std::uint32_t seed = 1;
  for (DType kv_dtype : kKvDTypes) {
    for (const auto& [dim_qk, dim_v] : dims) {
      const bool is_latent = dim_v <= dim_qk && seed % 2 == 0;
      specs.push_back({.num_q_heads = 4,
                       .num_kv_heads = seed % 3 == 0 ? 1 : 2,
                       .head_dim_qk = dim_qk,
                       .head_dim_v = dim_v,
                       .dtype = kDTypes[seed % 3],
                       .kv_dtype = kv_dtype,
                       .value_is_key_prefix = is_latent,
                       .q_len = seed % 5 == 0 ? 1 : 9,
                       .kv_len = 17 + 61 * (seed % 11),
                       .is_causal = seed % 2 == 0,
                       .window_left = seed % 4 == 0 ? 100 : -1,
                       .sink_tokens = seed % 4 == 0 ? 20 : 0,
                       .mask = seed % 7 == 0 ? BiasOrMask::kShared : BiasOrMask::kNone,
                       .seed = seed});
      ++seed;
    }
  }
  return specs;
}

TEST(WideHeadsTest, EveryWidthOverCachesOfEveryType) {
  const int dims[][2] = {{257, 1}, {512, 512}, {576, 512}, {575, 511}, {1, 512},
                         {576, 3}, {320, 256}, {321, 256}, {300, 300}, {256, 257}};
  std::uint32_t seed = 1;
  for (const auto& [dim_qk, dim_v] : dims) {
    for (DType dtype : kKvDTypes) {
      for (const Lengths lengths : {Lengths{1, 37}, {14, 53}}) {
        ExpectParityOnAll({.num_q_heads = 2,
                           .num_kv_heads = 1,
                           .head_dim_qk = dim_qk,
                           .head_dim_v = dim_v,
                           .dtype = seed % 2 == 0 ? DType::kFloat32 : RowTypeFor(dtype),
                           .kv_dtype = dtype,
                           .q_len = lengths.q_len,
                           .kv_len = lengths.kv_len,
                           .is_causal = true,
                           .seed = seed});
        ++seed;
      }
    }
  }
}

// Ranges of such heads have half as many keys, on both sides of which windows end here.
TEST(WideHeadsTest, EveryVariantAcrossRanges) {
  for (ProblemSpec spec : Variants({.num_q_heads = 2,
                          .num_kv_heads = 1,
                          .head_dim_qk = 300,
                          .head_dim_v = 300,
                          .q_len = 5,
                          .kv_len = 530})) {
    if (spec.window_left > 8) spec.window_left += 240;
    ExpectParityOnAll(spec, 256);
  }
}

TEST(WideHeadsTest, TheReferenceComputesThemInPagesToo) {
  const auto backend = reference::MakeReferenceBackend();
  for (DType dtype : kDTypes) {
    ExpectParity(*backend,
                 {.head_dim_qk = 576, .head_dim_v = 512, .dtype = dtype, .kv_dtype = dtype}, 16);
    ExpectParity(*backend, Latent(576, 512, dtype), 16);
  }
}

TEST(LatentTest, EveryWidthOverCachesOfEveryType) {
  const int dims[][2] = {{576, 512}, {64, 64}, {37, 21}, {5, 3}, {129, 129}, {1, 1}, {96, 79}};
  std::uint32_t seed = 1;
  for (const auto& [dim_qk, dim_v] : dims) {
    for (DType dtype : kKvDTypes) {
      for (DType row_dtype : kDTypes) {
        ProblemSpec spec = Latent(dim_qk, dim_v, dtype);
        spec.kv_row_dtype = row_dtype;
        spec.q_len = seed % 2 == 0 ? 1 : 14;
        spec.kv_len = seed % 3 == 0 ? 300 : 53;
        spec.num_kv_heads = seed % 5 == 0 ? 5 : 1;
        spec.seed = seed++;
        ExpectParityOnAll(spec);
      }
    }
  }
}

TEST(LatentTest, EveryVariant) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
    ProblemSpec base = Latent(72, 64, dtype);
    base.q_len = 13;
    base.kv_len = 67;
    for (const ProblemSpec& spec : Variants(base)) ExpectParityOnAll(spec, 16);
  }
}

TEST(LatentTest, ManyQueryHeadsDecodeOverSeveralRanges) {
  for (DType dtype : kKvDTypes) {
    ProblemSpec spec = Latent(576, 512, dtype);
    spec.num_q_heads = 128;
    spec.q_len = 1;
    spec.kv_len = 530;
    const AttentionProblem problem(spec);
    const Expectation expected = MakeExpectation(problem);
    for (const TargetBackend& target : CpuTargets()) {
      SCOPED_TRACE(target.name);
      ExpectParityOf(*target.backend, problem, expected, 64);
    }
  }
}

// Keys are stored once, and nothing but they.
TEST(LatentTest, APageHasTheBytesOfItsKeys) {
  for (const TargetBackend& target : CpuTargets()) {
    for (DType dtype : kKvDTypes) {
      const KvGeometry geometry{1, 576, 512, dtype, /*value_is_key_prefix=*/true};
      const std::size_t scales = HasRowScales(dtype) ? 64 * sizeof(float) : 0;
      EXPECT_EQ(target.backend->PageLayout(geometry, 64).page_bytes,
                64 * 576 * DTypeBytes(dtype) + scales);
    }
  }
}

// The values of a cache without scales are the bytes of its keys.
TEST(LatentTest, GivesTheBitsOfValuesThatAreGiven) {
  for (DType dtype : kDTypes) {
    for (std::int64_t q_len : {std::int64_t{1}, std::int64_t{40}}) {
      ProblemSpec spec = Latent(576, 512, dtype);
      spec.q_len = q_len;
      spec.kv_len = 601;
      const AttentionProblem problem(spec);
      AttentionTask given = problem.task();
      given.params.value_is_key_prefix = false;
      given.v = given.k;
      for (const TargetBackend& target : CpuTargets()) {
        EXPECT_TRUE(
            SameBits(RunTask(*target.backend, given), RunTask(*target.backend, problem.task())))
            << target.name << " " << spec.Describe();
      }
    }
  }
}

TEST(LatentTest, ACacheOfFloat8GivesTheBitsOfItsRowsInBFloat16) {
  ProblemSpec spec = Latent(576, 512, DType::kFloat8E4M3);
  spec.kv_row_dtype = DType::kFloat32;
  spec.dtype = DType::kFloat32;
  spec.q_len = 9;
  spec.kv_len = 300;
  for (const TargetBackend& target : CpuTargets()) ExpectBitsOfBFloat16Rows(*target.backend, spec);
}

TEST(LatentTest, InvisibleKeysNeverMatter) {
  for (DType dtype : kKvDTypes) {
    ProblemSpec spec = Latent(72, 64, dtype);
    spec.kv_row_dtype = DType::kFloat32;
    spec.q_len = spec.kv_len = 50;
    for (const TargetBackend& target : CpuTargets()) {
      SCOPED_TRACE(target.name);
      ExpectInvisibleKeysNeverMatter(*target.backend, spec);
    }
  }
}

TEST(WideInvarianceTest, ATaskAmongOthersGivesTheBitsItGivesAlone) {
  const std::vector<ProblemSpec> specs = MixedWideSpecs();
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    const Batch together(specs, /*wants_column_sums=*/true), alone(specs, true);
    RunTasks(*target.backend, together.tasks());
    for (const AttentionTask& task : alone.tasks()) RunTasks(*target.backend, {task});
    together.ExpectBitsOf(alone);
  }
}

TEST(WideInvarianceTest, AnyNumberOfThreadsGivesTheSameBits) {
  std::vector<ProblemSpec> specs = MixedWideSpecs();
  for (DType dtype : kKvDTypes) {
    ProblemSpec split = Latent(576, 512, dtype);
    split.num_q_heads = 16;
    split.q_len = 1;
    split.kv_len = 4000;
    specs.push_back(split);
    split.value_is_key_prefix = false;
    specs.push_back(split);
  }
  const Batch expected(specs, /*wants_column_sums=*/true);
  RunTasks(*MakeCpu(1), expected.tasks());
  for (int threads : {2, 5}) {
    const Batch actual(specs, /*wants_column_sums=*/true);
    RunTasks(*MakeCpu(threads), actual.tasks());
    actual.ExpectBitsOf(expected);
  }
}

TEST(WideInvarianceTest, PagingAndAppendsLeaveNoTrace) {
  for (const ProblemSpec& spec : MixedWideSpecs()) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    for (const TargetBackend& target : CpuTargets()) {
      const TaskOutput expected = RunTask(*target.backend, problem.task());
      for (std::int64_t page_size : {16, 48}) {
        const PagedKv paged(*target.backend, problem,
                            {.page_size = page_size, .seed = 3, .append_tokens = page_size / 3});
        EXPECT_TRUE(SameBits(expected, RunTask(*target.backend, paged.Task(problem))))
            << target.name << " page_size " << page_size;
      }
    }
  }
}

TEST(WideInvarianceTest, RowsOneByOneGiveTheBitsOfAllTogether) {
  for (const ProblemSpec& spec : MixedWideSpecs()) ExpectBitsOfRowsOneByOne(CpuTargets(), spec);
}

TEST(WideInvarianceTest, ChunksOfAPromptGiveTheBitsOfTheWhole) {
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    for (DType dtype : kKvDTypes) {
      ProblemSpec spec = Latent(576, 512, dtype);
      spec.q_len = spec.kv_len = 300;
      for (bool is_latent : {true, false}) {
        spec.value_is_key_prefix = is_latent;
        ExpectBitsOfChunks(*target.backend, spec, {0, 1, 2, 100, 255, 256, 299, 300});
      }
    }
  }
}

// Scores so large that some of a tile's rows are near 0 and others far from it.
TEST(WideInvarianceTest, PeakedScoresOfEveryMagnitude) {
  for (DType dtype : kKvDTypes) {
    for (float magnitude : {8.0f, 40.0f}) {
      ProblemSpec spec = Latent(576, 512, dtype);
      spec.q_len = 20;
      spec.kv_len = 300;
      spec.magnitude = magnitude;
      ExpectBitsOfRowsOneByOne(CpuTargets(), spec);
      if (magnitude < 10) ExpectParityOnAll(spec);
    }
  }
}

TEST(WideHeadsTest, WeightsAndColumnSumsMatchTheReference) {
  for (const ProblemSpec& spec :
       {ProblemSpec{.head_dim_qk = 512, .head_dim_v = 512, .kv_len = 300},
        Latent(576, 512, DType::kBFloat16), Latent(576, 512, DType::kInt8)}) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const auto exact = reference::ReferenceAttention(
        problem.StoredTask(), {.with_weights = true, .with_column_sums = true});
    for (const TargetBackend& target : CpuTargets()) {
      SCOPED_TRACE(target.name);
      WeightsTask task{.attention = problem.task(), .q_begin = 0, .q_end = spec.q_len};
      std::vector<float> weights(exact.weights.size());
      task.weights = weights.data();
      ASSERT_TRUE(target.backend->RunWeights(task).ok());
      for (std::size_t i = 0; i < weights.size(); ++i) {
        ASSERT_NEAR(weights[i], exact.weights[i], 1e-5 * std::max(exact.weights[i], 1e-3)) << i;
      }
      AttentionTask sums = problem.task();
      TaskOutput output(sums.params, sums.q_len, sums.kv_len);
      output.wants_column_sums = true;
      output.BindTo(&sums);
      RunTasks(*target.backend, {sums});
      for (std::size_t i = 0; i < output.column_sums.size(); ++i) {
        ASSERT_NEAR(output.column_sums[i], exact.column_sums[i],
                    1e-5 * std::max(exact.column_sums[i], 1e-3))
            << i;
      }
    }
  }
}

}  // namespace
}  // namespace attention::testing
