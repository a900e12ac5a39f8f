// Runs that stop and go on: whenever they yield and whatever runs in between, the bits are those of
// a run that was left alone.
#include <gmock/gmock.h>

#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/reference/reference_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cpu_targets.h"

namespace attention::testing {
namespace {

std::unique_ptr<AttentionPlan> PlanOn(AttentionBackend& backend, const Batch& batch) {
  auto plan = backend.Plan(batch.tasks());
  EXPECT_TRUE(plan.ok()) << plan.status();
  return std::move(*plan);
}

// Everything that yields in its own way: packing before and within units, tiles of several row
// blocks and ranges, small tasks taken whole, ranges split among threads and merged, empty rows.
std::vector<ProblemSpec> Specs(DType dtype) {
  std::vector<ProblemSpec> specs = {
      {.num_q_heads = 8, .num_kv_heads = 2, .q_len = 150, .kv_len = 1100, .is_causal = true},
      {.num_q_heads = 4, .num_kv_heads = 1, .q_len = 1, .kv_len = 20000},
      {.num_q_heads = 4, .num_kv_heads = 4, .q_len = 20, .kv_len = 20},
      {.num_q_heads = 2, .num_kv_heads = 2, .q_len = 9, .kv_len = 12, .is_causal = true},
      {.num_q_heads = 6,
       .num_kv_heads = 3,
       .q_len = 40,
       .kv_len = 1600,
       .window_left = 300,
       .window_right = 10,
       .sink_tokens = 20,
       .has_alibi = true,
       .has_sink_logits = true},
      {.num_q_heads = 2, .num_kv_heads = 1, .q_len = 5, .kv_len = 0},
      {.num_q_heads = 16,
       .num_kv_heads = 1,
       .head_dim_qk = 576,
       .head_dim_v = 512,
       .value_is_key_prefix = true,
       .q_len = 3,
       .kv_len = 1100,
       .is_causal = true},
      {.num_q_heads = 2,
       .num_kv_heads = 1,
       .q_len = 30,
       .kv_len = 700,
       .first_query_position = -10,
       .is_causal = true},
  };
  for (ProblemSpec& spec : specs) {
    spec.kv_dtype = dtype;
    spec.dtype = HasRowScales(dtype) ? DType::kFloat32 : dtype;
  }
  return specs;
}

// Runs until done with a flag that is always set; returns the number of runs.
int RunStepByStep(
    AttentionBackend& backend, AttentionPlan& plan,
    const std::function<void(int run)>& between = [](int) {}) {
  const std::atomic<bool> should_yield{true};
  double flops_done = 0;
  for (int run = 1;; ++run) {
    const auto state = backend.Run(plan, &should_yield);
    EXPECT_TRUE(state.ok()) << state.status();
    if (!state.ok()) return run;
    const PlanProgress progress = plan.progress();
    EXPECT_GE(progress.flops_done, flops_done);
    EXPECT_LE(progress.flops_done, progress.flops);
    flops_done = progress.flops_done;
    if (*state == RunState::kDone) {
      EXPECT_EQ(progress.flops_done, progress.flops);
      return run;
    }
    between(run);
  }
}

TEST(YieldTest, AFlagThatStaysSetGivesTheBitsOfARunLeftAlone) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat8E4M3}) {
    for (bool wants_column_sums : {false, true}) {
      const Batch expected(Specs(dtype), wants_column_sums);
      for (const TargetBackend& target : CpuTargets()) {
        const Batch batch(Specs(dtype), wants_column_sums);
        SCOPED_TRACE(target.name);
        RunTasks(*target.backend, expected.tasks());
        const auto plan = PlanOn(*target.backend, batch);
        // Row blocks and ranges alone are more than this, on two threads.
        EXPECT_GT(RunStepByStep(*target.backend, *plan), 100);
        batch.ExpectBitsOf(expected);
      }
    }
  }
}

TEST(YieldTest, AnyNumberOfThreadsGivesTheSameBits) {
  const Batch expected(Specs(DType::kFloat32), /*wants_column_sums=*/true);
  RunTasks(*MakeCpu(1), expected.tasks());
  for (int threads : {1, 2, 5}) {
    const auto backend = MakeCpu(threads);
    const Batch batch(Specs(DType::kFloat32), /*wants_column_sums=*/true);
    const auto plan = PlanOn(*backend, batch);
    RunStepByStep(*backend, *plan);
    batch.ExpectBitsOf(expected);
  }
}

TEST(YieldTest, OtherWorkInBetweenLeavesNoTrace) {
  const auto backend = MakeCpu(2);
  const Batch expected(Specs(DType::kFloat32), /*wants_column_sums=*/true);
  RunTasks(*backend, expected.tasks());
  const Batch batch(Specs(DType::kFloat32), /*wants_column_sums=*/true);
  const AttentionProblem other({.q_len = 20, .kv_len = 900});
  const TaskOutput other_expected = RunTask(*backend, other.task());
  const Batch second(Specs(DType::kBFloat16));  // yields as well, beside the first
  const auto second_plan = PlanOn(*backend, second);
  std::vector<float> lse = other_expected.lse;
  std::vector<float> weights(std::size_t{20} * 4 * 900);
  const auto plan = PlanOn(*backend, batch);
  RunStepByStep(*backend, *plan, [&](int run) {
    const std::atomic<bool> should_yield{true};
    if (run % 3 == 0) {
      EXPECT_TRUE(SameBits(other_expected, RunTask(*backend, other.task())));
    } else if (run % 3 == 1) {
      EXPECT_TRUE(backend->Run(*second_plan, &should_yield).ok());
    } else if (run % 15 == 2) {
      const PagedKv paged(*backend, other, {.page_size = 64});
      EXPECT_TRUE(SameBits(other_expected, RunTask(*backend, paged.Task(other))));
      WeightsTask task{.attention = other.task(), .q_end = 20, .weights = weights.data()};
      task.attention.lse = lse.data();
      EXPECT_TRUE(backend->RunWeights(task).ok());
    }
  });
  batch.ExpectBitsOf(expected);
}

// The flag comes and goes as another thread likes.
TEST(YieldTest, AFlagSetAtRandomTimesGivesTheSameBits) {
  const auto backend = MakeCpu(3);
  const Batch expected(Specs(DType::kFloat32), /*wants_column_sums=*/true);
  RunTasks(*backend, expected.tasks());
  std::atomic<bool> should_yield{false}, is_over{false};
  std::thread setter([&] {
    std::mt19937 random(1);
    while (!is_over) {
      for (unsigned spin = random() % 20000; spin > 0; --spin) {
        std::atomic_signal_fence(std::memory_order_seq_cst);
      }
      should_yield = random() % 2 == 0;
    }
  });
  for (int round = 0; round < 20; ++round) {
    const Batch batch(Specs(DType::kFloat32), /*wants_column_sums=*/true);
    const auto plan = PlanOn(*backend, batch);
    for (auto state = RunState::kYielded; state == RunState::kYielded;) {
      const auto answer = backend->Run(*plan, &should_yield);
      ASSERT_TRUE(answer.ok()) << answer.status();
      state = *answer;
    }
    batch.ExpectBitsOf(expected);
  }
  is_over = true;
  setter.join();
}

TEST(YieldTest, AYieldedPlanEndsWithoutAFlagAndMayRunAgain) {
  const auto backend = MakeCpu(2);
  const Batch expected(Specs(DType::kFloat32));
  RunTasks(*backend, expected.tasks());
  const Batch batch(Specs(DType::kFloat32));
  const auto plan = PlanOn(*backend, batch);
  const std::atomic<bool> should_yield{true};
  for (int round = 0; round < 2; ++round) {
    for (int run = 0; run < 30; ++run) {
      ASSERT_EQ(*backend->Run(*plan, &should_yield), RunState::kYielded);
    }
    ASSERT_TRUE(backend->Run(*plan).ok());
    batch.ExpectBitsOf(expected);
  }
}

TEST(YieldTest, AYieldedPlanMayBeDestroyedAtAnyPoint) {
  const auto backend = MakeCpu(2);
  const Batch expected(Specs(DType::kFloat32), /*wants_column_sums=*/true);
  RunTasks(*backend, expected.tasks());
  const std::atomic<bool> should_yield{true};
  for (int runs : {1, 3, 10, 40, 150, 250}) {
    const Batch abandoned(Specs(DType::kFloat32), /*wants_column_sums=*/true);
    auto plan = PlanOn(*backend, abandoned);
    for (int run = 0; run < runs; ++run) ASSERT_TRUE(backend->Run(*plan, &should_yield).ok());
    plan.reset();
    const Batch batch(Specs(DType::kFloat32), /*wants_column_sums=*/true);
    RunTasks(*backend, batch.tasks());
    batch.ExpectBitsOf(expected);
  }
}

TEST(YieldTest, AYieldedPlanMayOutliveItsBackend) {
  auto backend = MakeCpu(2);
  const Batch batch(Specs(DType::kFloat32));
  const auto plan = PlanOn(*backend, batch);
  const std::atomic<bool> should_yield{true};
  EXPECT_EQ(*backend->Run(*plan, &should_yield), RunState::kYielded);
  backend.reset();
}

TEST(YieldTest, TheReferenceYieldsBetweenRows) {
  const auto backend = reference::MakeReferenceBackend();
  const std::vector<ProblemSpec> specs = {{.q_len = 3, .kv_len = 20},
                                          {.q_len = 0, .kv_len = 5},
                                          {.q_len = 2, .kv_len = 7, .is_causal = true}};
  const Batch expected(specs, /*wants_column_sums=*/true);
  RunTasks(*backend, expected.tasks());
  const Batch batch(specs, /*wants_column_sums=*/true);
  const auto plan = PlanOn(*backend, batch);
  EXPECT_EQ(RunStepByStep(*backend, *plan), (3 + 2) * 4);
  batch.ExpectBitsOf(expected);
}

}  // namespace
}  // namespace attention::testing
