// Prefill that compute capability 9.0 has a kernel of its own for (kernels/cuda/kernels/sm90):
// 16-bit types, head dims of 64, 128 and 256, more rows than are split. The kernel is executed on
// the host (tests/simt) or on a GPU; one of another compute capability computes the same problems
// with the generic kernel.
#include <gmock/gmock.h>

#include <cstring>
#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/problem_variants.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

constexpr DType kTypes[] = {DType::kBFloat16, DType::kFloat16};
constexpr int kDims[] = {64, 128, 256};

ProblemSpec Prefill(int dim, DType dtype = DType::kBFloat16) {
  return {.num_q_heads = 4,
          .num_kv_heads = 2,
          .head_dim_qk = dim,
          .head_dim_v = dim,
          .dtype = dtype,
          .kv_dtype = dtype,
          .q_len = 70,
          .kv_len = 300,
          .is_causal = true};
}

TEST(CudaPrefillTest, EveryHeadDimAndType) {
  for (int dim : kDims) {
    for (DType dtype : kTypes) ExpectParity(CudaHopper(), Prefill(dim, dtype), 64);
  }
}

// The widest windows begin in other tiles than they end in.
TEST(CudaPrefillTest, EveryVariant) {
  for (ProblemSpec spec : Variants({.num_q_heads = 2,
                          .num_kv_heads = 1,
                          .head_dim_qk = 64,
                          .head_dim_v = 64,
                          .dtype = DType::kBFloat16,
                          .kv_dtype = DType::kBFloat16,
                          .q_len = 75,
                          .kv_len = 310})) {
    if (spec.window_left > 8) spec.window_left += 100;
    ExpectParity(CudaHopper(), spec, 48);
  }
}

TEST(CudaPrefillTest, EveryVariantOfWindowsFor128And256Dims) {
  for (int dim : {128, 256}) {
    ProblemSpec spec = Prefill(dim, DType::kFloat16);
    spec.window_left = 70;
    spec.sink_tokens = 5;
    spec.has_sink_logits = true;
    ExpectParity(CudaHopper(), spec, 16);
    spec.is_causal = false;
    spec.window_right = 10;
    spec.soft_cap = 5;
    ExpectParity(CudaHopper(), spec, 256);
  }
}

TEST(CudaPrefillTest, EveryGroupOfQueryHeads) {
  for (int group : {1, 3, 5, 8}) {
    ProblemSpec spec = Prefill(64);
    spec.num_kv_heads = 1;
    spec.num_q_heads = group;
    spec.q_len = 300 / group;
    spec.has_sink_logits = true;
    ExpectParity(CudaHopper(), spec, 64);
  }
}

TEST(CudaPrefillTest, EveryLengthAtTheEdgesOfTiles) {
  std::uint32_t seed = 1;
  for (std::int64_t q_len : {129, 192, 193, 256, 257}) {
    for (std::int64_t kv_len : {0, 1, 16, 127, 128, 129, 257}) {
      ProblemSpec spec = Prefill(64, kTypes[seed % 2]);
      spec.num_q_heads = spec.num_kv_heads = 1;
      spec.q_len = q_len;
      spec.kv_len = kv_len;
      spec.is_causal = seed % 3 != 0;
      spec.seed = seed++;
      ExpectParity(CudaHopper(), spec, 16);
    }
  }
}

// Large scores: exponentials underflow and one key takes nearly all the weight. A scale that is not
// positive is not folded into the exponent.
TEST(CudaPrefillTest, PeakedSoftmaxAndEveryScale) {
  ProblemSpec spec = Prefill(128);
  spec.magnitude = 8;
  ExpectParity(CudaHopper(), spec, 64);
  const AttentionProblem problem(Prefill(64));
  for (float scale : {0.0f, -0.3f, 2.0f}) {
    AttentionTask task = problem.task();
    task.params.softmax_scale = scale;
    const auto exact = [&] {
      AttentionTask stored = problem.StoredTask();
      stored.params.softmax_scale = scale;
      return reference::ReferenceAttention(stored, {});
    }();
    const TaskOutput result = RunTask(CudaHopper(), task);
    for (std::size_t i = 0; i < exact.o.size(); ++i) {
      ASSERT_NEAR(result.o(static_cast<std::int64_t>(i)), exact.o[i], 0.03) << i;
    }
    for (std::size_t i = 0; i < exact.lse.size(); ++i) {
      ASSERT_NEAR(result.lse[i], exact.lse[i], 1e-4) << i;
    }
  }
}

TEST(CudaPrefillTest, EveryPageSize) {
  const AttentionProblem problem(Prefill(128));
  const TaskOutput expected = RunTask(CudaHopper(), problem.task());
  for (std::int64_t page_size : {16, 48, 64, 80, 128, 256}) {
    const PagedKv paged(CudaHopper(), problem,
                        {.page_size = page_size, .seed = 5, .append_tokens = 100});
    EXPECT_TRUE(SameBits(expected, RunTask(CudaHopper(), paged.Task(problem))))
        << "page_size " << page_size;
  }
}

TEST(CudaPrefillTest, PagesOutsideTheWindowAreNotRead) {
  const std::int64_t page_size = 48;
  ProblemSpec spec = Prefill(64);
  spec.kv_len = page_size * 12;
  spec.window_left = 60;
  spec.sink_tokens = 10;
  const AttentionProblem problem(spec);
  PagedKv paged(CudaHopper(), problem, {.page_size = page_size});
  const TaskOutput expected = RunTask(CudaHopper(), paged.Task(problem));
  // The oldest query sees keys from 576 - 70 - 60 on, in page 9; sinks are in page 0.
  for (std::int64_t i = 1; i < 9; ++i) paged.table()[i] = nullptr;
  EXPECT_TRUE(SameBits(expected, RunTask(CudaHopper(), paged.Task(problem))));
}

// --- Bits ---

// Chunks have more than kMaxSplitRows rows.
TEST(CudaPrefillTest, ChunksGiveTheBitsOfTheWhole) {
  for (int dim : kDims) {
    ProblemSpec spec = Prefill(dim, kTypes[dim == 64]);
    spec.num_q_heads = 3;
    spec.num_kv_heads = 1;
    spec.q_len = spec.kv_len = 250;
    ExpectBitsOfChunks(CudaHopper(), spec, {0, 50, 145, 250});
    spec.window_left = 90;
    spec.sink_tokens = 3;
    spec.soft_cap = dim == 256 ? 4.0f : 0.0f;
    ExpectBitsOfChunks(CudaHopper(), spec, {0, 101, 250});
  }
}

std::vector<ProblemSpec> MixedPrefills() {
  std::vector<ProblemSpec> specs;
  for (int i = 0; i < 10; ++i) {
    ProblemSpec spec = Prefill(kDims[i % 3], kTypes[i / 3 % 2]);
    spec.num_kv_heads = 1 + i % 2;
    spec.num_q_heads = spec.num_kv_heads * (1 + i % 4);
    spec.q_len = 130 + i * 37 % 100;
    spec.kv_len = 1 + i * 97 % 400;
    if (i == 4) spec.q_len = 1;
    spec.is_causal = i % 4 != 0;
    spec.has_alibi = i == 7;
    spec.seed = static_cast<std::uint32_t>(i + 1);
    specs.push_back(spec);
  }
  return specs;
}

// Blocks take items as they come, so a batch also shuffles which block computes what after what.
TEST(CudaPrefillTest, ATaskAmongOthersGivesTheBitsItGivesAloneInAnyOrderOfBlocksAndWarps) {
  const Batch alone(MixedPrefills());
  for (const AttentionTask& task : alone.tasks()) RunTasks(CudaHopper(), {task});
  for (std::uint32_t seed : {2u, 3u}) {
    const Batch together(MixedPrefills());
    RunTasks(*MakeCudaHopper(seed), together.tasks());
    together.ExpectBitsOf(alone);
  }
}

TEST(CudaPrefillTest, YieldsLeaveNoTrace) {
  const Batch expected(MixedPrefills()), batch(MixedPrefills());
  RunTasks(CudaHopper(), expected.tasks());
  const auto backend = MakeCudaHopper(/*seed=*/5, /*launch_flops=*/2e7);
  auto plan = backend->Plan(batch.tasks());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::atomic<bool> should_yield{true};
  int runs = 1;
  for (; *backend->Run(**plan, &should_yield) == RunState::kYielded; ++runs) {
  }
  EXPECT_GT(runs, 10);
  batch.ExpectBitsOf(expected);
}

// --- What is not visible ---

TEST(CudaPrefillTest, ValuesAndKeysThatARowDoesNotSeeNeverMatter) {
  std::uint32_t seed = 1;
  for (int dim : kDims) {
    ProblemSpec spec = Prefill(dim, kTypes[seed++ % 2]);
    spec.num_q_heads = 2;
    spec.num_kv_heads = 1;
    spec.q_len = 70;
    spec.kv_len = 150;
    ExpectInvisibleKeysNeverMatter(CudaHopper(), spec);
    if (dim != 64) continue;
    spec.window_left = 5;
    spec.sink_tokens = 3;
    ExpectInvisibleKeysNeverMatter(CudaHopper(), spec);
    spec.mask = BiasOrMask::kShared;
    spec.is_causal = false;
    ExpectInvisibleKeysNeverMatter(CudaHopper(), spec);
  }
}

TEST(CudaPrefillTest, AnInfiniteValueReachesItsChannelOfTheRowsThatSeeIt) {
  for (int dim : kDims) {
    ProblemSpec spec = Prefill(dim, kTypes[dim == 128]);
    spec.q_len = spec.kv_len = 140;
    for (std::int64_t key : {70, 135}) {
      ExpectAnInfiniteValueStaysInItsChannel(CudaHopper(), spec, key);
    }
  }
}

TEST(CudaPrefillTest, BytesPastTheEndOfPagesNeverMatter) {
  for (std::int64_t kv_len : {1, 17, 213}) {
    ProblemSpec spec = Prefill(64);
    spec.kv_len = kv_len;
    spec.is_causal = false;
    const AttentionProblem problem(spec);
    const PagedKv zeros(CudaHopper(), problem, {.page_size = 64, .poison = 0});
    const PagedKv nans(CudaHopper(), problem, {.page_size = 64, .poison = 0xff});
    const TaskOutput result = RunTask(CudaHopper(), nans.Task(problem));
    EXPECT_TRUE(SameBits(RunTask(CudaHopper(), zeros.Task(problem)), result));
    EXPECT_THAT(NonFiniteRows(result), ::testing::IsEmpty());
  }
}

TEST(CudaPrefillTest, RowsWithNothingVisibleAreZeroWithLseOfMinusInfinity) {
  ProblemSpec spec = Prefill(64);
  spec.mask = BiasOrMask::kShared;
  AttentionProblem problem(spec);
  for (std::int64_t row : {0, 4, 69}) {
    std::fill_n(problem.mask().begin() + row * spec.kv_len, spec.kv_len, std::uint8_t{0});
  }
  const TaskOutput result = RunTask(CudaHopper(), problem.task());
  for (std::int64_t row = 0; row < 70 * 4; ++row) {
    const bool is_empty = row / 4 == 0 || row / 4 == 4 || row / 4 == 69;
    EXPECT_EQ(std::isinf(result.lse[row]), is_empty) << row;
    for (int i = 0; i < 64; ++i) EXPECT_EQ(result.o(row * 64 + i) == 0.0f, is_empty);
  }
}

}  // namespace
}  // namespace attention::testing
