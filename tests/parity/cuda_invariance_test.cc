// What the CUDA backend promises beside accuracy, its kernels executed on the host (tests/simt) or
// on a GPU: bits that do not depend on the batch, the paging, the order of blocks and warps, or on
// yields; bytes that are not visible never matter.
#include <gmock/gmock.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Different in every respect that an item may depend on.
std::vector<ProblemSpec> MixedSpecs(int count) {
  std::vector<ProblemSpec> specs;
  for (int i = 0; i < count; ++i) {
    ProblemSpec spec;
    spec.num_kv_heads = 1 + i % 3;
    spec.num_q_heads = spec.num_kv_heads * (1 + i % 5);
    spec.head_dim_qk = 8 + i % 7 * 9;
    spec.head_dim_v = 5 + i % 4 * 16;
    spec.kv_dtype = kKvDTypes[i / 3 % 5];
    spec.dtype = i % 4 == 0 ? kDTypes[i % 3] : RowTypeFor(spec.kv_dtype);
    spec.kv_len = 1 + i * 37 % 700;
    spec.q_len = i % 2 == 0 ? 1 : 1 + i * 5 % 60;
    spec.is_causal = i % 4 != 0;
    spec.window_left = i % 6 == 5 ? 100 : -1;
    spec.sink_tokens = i % 12 == 5 ? 4 : 0;
    spec.soft_cap = i % 8 == 7 ? 10.0f : 0.0f;
    spec.has_alibi = i % 9 == 8;
    spec.has_sink_logits = i % 10 == 9;
    spec.bias = i % 11 == 3 ? Plane::kPerHead : Plane::kNone;
    spec.mask = i % 7 == 3 ? Plane::kShared : Plane::kNone;
    spec.seed = static_cast<std::uint32_t>(i + 1);
    specs.push_back(spec);
  }
  return specs;
}

TEST(CudaInvarianceTest, ATaskAmongSixtyThreeOthersGivesTheBitsItGivesAlone) {
  const std::vector<ProblemSpec> specs = MixedSpecs(64);
  const Batch together(specs, /*wants_column_sums=*/true), alone(specs, true);
  RunTasks(Cuda(), together.tasks());
  for (const AttentionTask& task : alone.tasks()) RunTasks(Cuda(), {task});
  together.ExpectBitsOf(alone);
}

// Which block comes last to a merge, and which warp first to a barrier, is drawn from the seed.
TEST(CudaInvarianceTest, AnyOrderOfBlocksAndWarpsGivesTheSameBits) {
  std::vector<ProblemSpec> specs = MixedSpecs(24);
  specs.push_back({.num_q_heads = 4,
                   .num_kv_heads = 1,
                   .dtype = DType::kBFloat16,
                   .kv_dtype = DType::kBFloat16,
                   .q_len = 1,
                   .kv_len = 3000});
  const Batch expected(specs);
  RunTasks(Cuda(), expected.tasks());
  for (std::uint32_t seed : {2u, 3u, 4u}) {
    const Batch batch(specs);
    RunTasks(*MakeCuda(seed), batch.tasks());
    batch.ExpectBitsOf(expected);
  }
}

TEST(CudaInvarianceTest, PagingLeavesNoTrace) {
  for (const ProblemSpec& spec : MixedSpecs(30)) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const TaskOutput expected = RunTask(Cuda(), problem.task());
    for (std::uint32_t seed : {1u, 2u}) {
      const PagedKv paged(Cuda(), problem, {.page_size = seed == 1 ? 16 : 48, .seed = seed});
      EXPECT_TRUE(SameBits(expected, RunTask(Cuda(), paged.Task(problem))));
    }
  }
}

TEST(CudaInvarianceTest, ChunksOfAPromptGiveTheBitsOfTheWhole) {
  for (DType dtype : kKvDTypes) {
    ExpectBitsOfChunks(Cuda(),
                       {.num_q_heads = 6,
                        .num_kv_heads = 2,
                        .dtype = RowTypeFor(dtype),
                        .kv_dtype = dtype,
                        .q_len = 400,
                        .kv_len = 400,
                        .is_causal = true},
                       {0, 50, 145, 256, 311, 400});  // of more than kMaxSplitRows rows
  }
}

// Steps that see as many keys have the same ranges, so rows may come together or one by one.
TEST(CudaInvarianceTest, RowsOfADecodeStepOneByOneGiveTheBitsOfAllTogether) {
  for (DType dtype : kKvDTypes) {
    const AttentionProblem problem({.num_q_heads = 4,
                                    .num_kv_heads = 2,
                                    .dtype = RowTypeFor(dtype),
                                    .kv_dtype = dtype,
                                    .q_len = 8,
                                    .kv_len = 900,
                                    .is_causal = true});
    const TaskOutput whole = RunTask(Cuda(), problem.task());
    for (std::int64_t row = 0; row < 8; ++row) {
      EXPECT_TRUE(HoldsRows(whole, RunTask(Cuda(), RowsOf(problem.task(), row, row + 1)), row));
    }
  }
}

TEST(CudaInvarianceTest, MergeOfTwoKeyRangesEqualsTheirUnion) {
  const std::int64_t kv_len = 900, split = 300;
  const AttentionProblem problem({.q_len = 5, .kv_len = kv_len});
  const TaskOutput whole = RunTask(Cuda(), problem.task());
  AttentionTask left_task = problem.task(), right_task = problem.task();
  left_task.kv_len = split;
  right_task.kv_begin = split;
  const TaskOutput left = RunTask(Cuda(), left_task);
  const TaskOutput right = RunTask(Cuda(), right_task);
  for (std::size_t row = 0; row < whole.lse.size(); ++row) {
    const double lse = std::log(std::exp(left.lse[row]) + std::exp(right.lse[row]));
    EXPECT_NEAR(lse, whole.lse[row], 1e-5);
    for (int channel = 0; channel < 32; ++channel) {
      const std::int64_t i = static_cast<std::int64_t>(row) * 32 + channel;
      const double o =
          left.o(i) * std::exp(left.lse[row] - lse) + right.o(i) * std::exp(right.lse[row] - lse);
      EXPECT_NEAR(o, whole.o(i), 2e-6);
    }
  }
}

TEST(CudaInvarianceTest, YieldsLeaveNoTrace) {
  std::vector<ProblemSpec> specs = MixedSpecs(12);
  specs.push_back({.q_len = 5, .kv_len = 0});
  specs.push_back({.q_len = 0, .kv_len = 5});
  const Batch expected(specs, /*wants_column_sums=*/true), batch(specs, true);
  RunTasks(Cuda(), expected.tasks());
  const auto backend = MakeCuda(/*seed=*/5, /*step_flops=*/2e4);
  auto plan = backend->Plan(batch.tasks());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const AttentionProblem other({.q_len = 20, .kv_len = 200});
  const TaskOutput other_expected = RunTask(*backend, other.task());
  const std::atomic<bool> should_yield{true};
  int runs = 0;
  double flops_done = 0;
  for (auto state = RunState::kYielded; state == RunState::kYielded; ++runs) {
    const auto answer = backend->Run(**plan, &should_yield);
    ASSERT_TRUE(answer.ok()) << answer.status();
    state = *answer;
    const PlanProgress progress = (*plan)->progress();
    EXPECT_GE(progress.flops_done, flops_done);
    EXPECT_LE(progress.flops_done, progress.flops);
    flops_done = progress.flops_done;
    if (runs % 5 == 0) {
      EXPECT_TRUE(SameBits(other_expected, RunTask(*backend, other.task())));
    }
  }
  EXPECT_GT(runs, 20);
  EXPECT_EQ(flops_done, (*plan)->progress().flops);
  batch.ExpectBitsOf(expected);
}

TEST(CudaInvarianceTest, AYieldedPlanMayBeDestroyedOrOutliveItsBackend) {
  const std::atomic<bool> should_yield{true};
  const Batch batch(MixedSpecs(4));
  auto backend = MakeCuda(1, 1e4);
  auto first = backend->Plan(batch.tasks()), second = backend->Plan(batch.tasks());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(*backend->Run(**first, &should_yield), RunState::kYielded);
  EXPECT_EQ(*backend->Run(**second, &should_yield), RunState::kYielded);
  first->reset();
  backend.reset();
}

TEST(CudaInvisibleTest, ValuesAndKeysThatARowDoesNotSeeNeverMatter) {
  const ProblemSpec cases[] = {
      {.q_len = 40, .kv_len = 40, .is_causal = true},
      {.q_len = 70, .kv_len = 70, .window_left = 5, .window_right = 5},
      {.q_len = 60, .kv_len = 60, .is_causal = true, .window_left = 5, .sink_tokens = 3},
      {.num_q_heads = 2, .q_len = 13, .kv_len = 550, .is_causal = true},
      {.q_len = 30, .kv_len = 70, .mask = Plane::kShared},
      {.q_len = 30, .kv_len = 70, .is_causal = true, .soft_cap = 5, .has_alibi = true},
      {.head_dim_v = 130, .q_len = 30, .kv_len = 70, .is_causal = true},
  };
  for (ProblemSpec spec : cases) {
    for (DType dtype : kKvDTypes) {
      spec.kv_dtype = dtype;
      spec.dtype = RowTypeFor(dtype);
      ExpectInvisibleKeysNeverMatter(Cuda(), spec);
    }
  }
}

// A finite key beside a value that is not: the scores do not tell.
TEST(CudaInvisibleTest, ABrokenValueBreaksItsChannelOfTheRowsThatSeeIt) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    ExpectABrokenValueStaysInItsChannel(
        Cuda(), {.dtype = dtype, .kv_dtype = dtype, .q_len = 100, .kv_len = 100, .is_causal = true},
        /*key=*/70);
  }
}

TEST(CudaInvisibleTest, BytesPastTheEndOfPagesNeverMatter) {
  for (DType dtype : kKvDTypes) {
    for (std::int64_t kv_len : {1, 2, 15, 17, 33, 213}) {
      const AttentionProblem problem({.head_dim_qk = 13,
                                      .head_dim_v = 21,
                                      .dtype = RowTypeFor(dtype),
                                      .kv_dtype = dtype,
                                      .q_len = 3,
                                      .kv_len = kv_len});
      const PagedKv zeros(Cuda(), problem, {.page_size = 64, .poison = 0});
      const PagedKv nans(Cuda(), problem, {.page_size = 64, .poison = 0xff});
      const TaskOutput result = RunTask(Cuda(), nans.Task(problem));
      EXPECT_TRUE(SameBits(RunTask(Cuda(), zeros.Task(problem)), result)) << "kv_len " << kv_len;
      EXPECT_THAT(BrokenRows(result), ::testing::IsEmpty());
    }
  }
}

TEST(CudaInvisibleTest, PagesOutsideTheWindowAreNotRead) {
  const std::int64_t page_size = 64, num_pages = 12;
  for (DType dtype : kKvDTypes) {
    const AttentionProblem problem({.dtype = RowTypeFor(dtype),
                                    .kv_dtype = dtype,
                                    .q_len = 6,
                                    .kv_len = page_size * num_pages,
                                    .is_causal = true,
                                    .window_left = 130,
                                    .sink_tokens = 10});
    PagedKv paged(Cuda(), problem, {.page_size = page_size});
    const TaskOutput expected = RunTask(Cuda(), paged.Task(problem));
    // Sinks are in page 0; the oldest query sees keys from kv_len - 6 - 130 on, in page 9.
    for (std::int64_t i = 1; i < 9; ++i) paged.table()[i] = nullptr;
    EXPECT_TRUE(SameBits(expected, RunTask(Cuda(), paged.Task(problem))));
  }
}

TEST(CudaInvisibleTest, ABiasOfMinusInfinityMasksAKeyWhateverItsValueHolds) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    AttentionProblem problem({.dtype = dtype, .kv_dtype = dtype, .q_len = 6, .kv_len = 40});
    std::vector<float> bias(6 * 40, 0.0f);
    for (int row = 0; row < 6; ++row) bias[row * 40 + 11] = -kInf;
    for (int head = 0; head < 2; ++head) problem.SetValue(11, head, 4, kNaN);
    AttentionTask task = problem.task();
    task.bias = {bias.data(), DType::kFloat32, 0, 40};
    EXPECT_THAT(BrokenRows(RunTask(Cuda(), task)), ::testing::IsEmpty());
  }
}

TEST(CudaInvisibleTest, RowsWithNothingVisibleAreZeroWithLseOfMinusInfinity) {
  for (DType dtype : kKvDTypes) {
    AttentionProblem problem({.dtype = RowTypeFor(dtype),
                              .kv_dtype = dtype,
                              .q_len = 9,
                              .kv_len = 40,
                              .mask = Plane::kShared});
    for (std::int64_t row : {0, 4, 8}) {
      std::fill_n(problem.mask().begin() + row * 40, 40, std::uint8_t{0});
    }
    const TaskOutput result = RunTask(Cuda(), problem.task());
    for (std::int64_t row = 0; row < 36; ++row) {
      EXPECT_EQ(std::isinf(result.lse[row]), row / 4 % 4 == 0);
      for (int i = 0; i < 32; ++i) EXPECT_EQ(result.o(row * 32 + i) == 0.0f, row / 4 % 4 == 0);
    }
  }
}

std::vector<ProblemSpec> WeightsSpecs() {
  return {
      {.q_len = 11, .kv_len = 45},
      {.kv_dtype = DType::kBFloat16, .q_len = 50, .kv_len = 50, .is_causal = true},
      {.kv_dtype = DType::kFloat16,
       .q_len = 30,
       .kv_len = 300,
       .window_left = 9,
       .window_right = 9},
      {.kv_dtype = DType::kInt8, .q_len = 7, .kv_len = 80},
      {.kv_dtype = DType::kFloat8E4M3, .q_len = 7, .kv_len = 80},
      {.num_q_heads = 6,
       .q_len = 9,
       .kv_len = 400,
       .kv_begin = 13,
       .is_causal = true,
       .window_left = 40,
       .sink_tokens = 20,
       .soft_cap = 4,
       .has_alibi = true,
       .has_sink_logits = true,
       .bias = Plane::kPerHead,
       .mask = Plane::kShared},
      // Queries before the first key see nothing.
      {.q_len = 20, .kv_len = 10, .is_causal = true},
  };
}

TEST(CudaWeightsTest, RowsMatchTheReference) {
  for (const ProblemSpec& spec : WeightsSpecs()) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const auto exact = reference::ReferenceAttention(problem.StoredTask(), {.with_weights = true});
    WeightsTask task{.attention = problem.task(), .q_begin = 2, .q_end = spec.q_len - 1};
    const std::int64_t row_size = spec.num_q_heads * spec.kv_len;
    std::vector<float> weights((task.q_end - task.q_begin) * row_size, -1.0f);
    task.weights = weights.data();
    ASSERT_TRUE(Cuda().RunWeights(task).ok());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const double expected = exact.weights[task.q_begin * row_size + i];
      ASSERT_NEAR(weights[i], expected, 3e-6 * std::max(expected, 1e-3)) << i;
      if (expected == 0) {
        ASSERT_EQ(weights[i], 0.0f) << i;
      }
    }
  }
}

TEST(CudaWeightsTest, ColumnSumsMatchTheReferenceWithAndWithoutLse) {
  for (const ProblemSpec& spec : WeightsSpecs()) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const auto exact =
        reference::ReferenceAttention(problem.StoredTask(), {.with_column_sums = true});
    for (bool with_lse : {false, true}) {
      AttentionTask task = problem.task();
      TaskOutput output(task.params, task.q_len, task.kv_len);
      output.wants_column_sums = true;
      output.BindTo(&task);
      if (!with_lse) task.lse = nullptr;
      RunTasks(Cuda(), {task});
      for (std::size_t i = 0; i < output.column_sums.size(); ++i) {
        ASSERT_NEAR(output.column_sums[i], exact.column_sums[i],
                    4e-6 * std::max(1.0, exact.column_sums[i]))
            << i;
      }
    }
  }
}

}  // namespace
}  // namespace attention::testing
