// Runs of the CUDA backend that stop and go on, on the host (tests/simt) or on a GPU: whenever they
// yield and whatever runs in between, the bits are those of a run that was left alone.
#include <gmock/gmock.h>

#include <atomic>
#include <vector>

#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"

namespace attention::testing {
namespace {

TEST(CudaYieldTest, YieldsLeaveNoTrace) {
  std::vector<ProblemSpec> specs = MixedSpecs(Tested(), 12);
  specs.push_back({.q_len = 5, .kv_len = 0});
  specs.push_back({.q_len = 0, .kv_len = 5});
  const Batch expected(specs, /*wants_column_sums=*/true), batch(specs, true);
  RunTasks(Cuda(), expected.tasks());
  const auto backend = MakeCuda(/*seed=*/5, /*launch_flops=*/2e4);
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

TEST(CudaYieldTest, AYieldedPlanMayBeDestroyedOrOutliveItsBackend) {
  const std::atomic<bool> should_yield{true};
  const Batch batch(MixedSpecs(Tested(), 4));
  auto backend = MakeCuda(1, 1e4);
  auto first = backend->Plan(batch.tasks()), second = backend->Plan(batch.tasks());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(*backend->Run(**first, &should_yield), RunState::kYielded);
  EXPECT_EQ(*backend->Run(**second, &should_yield), RunState::kYielded);
  first->reset();
  backend.reset();
}

}  // namespace
}  // namespace attention::testing
