// Runs whose parts travel while others are computed, on the host (tests/simt) or on a GPU: whenever
// a stream does its work, the bits are those of a run in one part.
#include <gmock/gmock.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"

namespace attention::testing {
namespace {

// Prompts that are cut between their rows, tasks that are not, and some that are next to nothing.
std::vector<ProblemSpec> Specs() {
  return {
      {.num_q_heads = 6, .num_kv_heads = 2, .q_len = 150, .kv_len = 200, .is_causal = true},
      {.num_q_heads = 4, .num_kv_heads = 4, .q_len = 0, .kv_len = 20},
      {.num_q_heads = 4,
       .num_kv_heads = 1,
       .dtype = DType::kBFloat16,
       .kv_dtype = DType::kBFloat16,
       .q_len = 200,
       .kv_len = 200,
       .is_causal = true,
       .mask = BiasOrMask::kShared},
      {.num_q_heads = 4,
       .num_kv_heads = 1,
       .dtype = DType::kFloat16,
       .kv_dtype = DType::kFloat16,
       .q_len = 1,
       .kv_len = 700},
      {.q_len = 3,
       .kv_len = 60,
       .window_left = 20,
       .has_alibi = true,
       .bias = BiasOrMask::kPerHead},
      {.num_q_heads = 4,
       .num_kv_heads = 2,
       .head_dim_qk = 64,
       .head_dim_v = 64,
       .dtype = DType::kBFloat16,
       .kv_dtype = DType::kBFloat16,
       .q_len = 130,
       .kv_len = 160},
  };
}

class CudaStreamsTest : public ::testing::TestWithParam<int> {
 protected:
  // A backend whose runs have parts of at least so many bytes.
  std::unique_ptr<AttentionBackend> Backend(std::size_t part_bytes, double launch_flops = 2e11) {
    return MakeCudaOverlapping(part_bytes, GetParam(), launch_flops);
  }
};

TEST_P(CudaStreamsTest, ARunInPartsGivesTheBitsOfOneInOne) {
  const Batch expected(Specs(), /*wants_column_sums=*/true);
  RunTasks(Cuda(), expected.tasks());
  for (const std::size_t part_bytes : {1, 10'000, 100'000}) {
    const auto backend = Backend(part_bytes);
    for (int run = 0; run < 3; ++run) {
      const Batch batch(Specs(), true);
      RunTasks(*backend, batch.tasks());
      batch.ExpectBitsOf(expected);
    }
  }
}

TEST_P(CudaStreamsTest, AppendsAreInOrderWithTheRunsThatFollow) {
  const auto backend = Backend(1);
  for (const ProblemSpec& spec : Specs()) {
    const AttentionProblem problem(spec);
    const TaskOutput expected = RunTask(Cuda(), problem.task());
    // Many on their way at a time, each with the memory of one before it.
    const PagedKv paged(*backend, problem, {.page_size = 32, .append_tokens = 9});
    EXPECT_TRUE(SameBits(expected, RunTask(*backend, paged.Task(problem))));
  }
}

TEST_P(CudaStreamsTest, ARunThatYieldsLetsOthersThroughAndGoesOn) {
  const std::atomic<bool> yields{true};
  const Batch expected(Specs(), true);
  RunTasks(Cuda(), expected.tasks());
  const auto backend = Backend(10'000, /*launch_flops=*/5e5);
  const Batch slow(Specs(), true);
  auto plan = backend->Plan(slow.tasks());
  ASSERT_TRUE(plan.ok()) << plan.status();
  int num_yields = 0;
  while (true) {
    const auto state = backend->Run(**plan, &yields);
    ASSERT_TRUE(state.ok()) << state.status();
    if (*state == RunState::kDone) break;
    if (++num_yields % 8 != 1) continue;
    const Batch other(Specs(), true);
    RunTasks(*backend, other.tasks());
    other.ExpectBitsOf(expected);
  }
  EXPECT_GT(num_yields, 10);
  slow.ExpectBitsOf(expected);
}

TEST_P(CudaStreamsTest, APlanThatIsGivenUpOnItsWayHarmsNobody) {
  const std::atomic<bool> yields{true};
  const Batch expected(Specs());
  RunTasks(Cuda(), expected.tasks());
  const auto backend = Backend(1, /*launch_flops=*/5e5);
  for (int num_slices : {1, 2, 5}) {
    {
      const Batch given_up(Specs());
      auto plan = backend->Plan(given_up.tasks());
      for (int i = 0; i < num_slices; ++i) ASSERT_TRUE(backend->Run(**plan, &yields).ok());
    }
    const Batch batch(Specs());
    RunTasks(*backend, batch.tasks());
    batch.ExpectBitsOf(expected);
  }
}

TEST_P(CudaStreamsTest, PagesAreSavedAsAppendedAndRestored) {
  const auto backend = Backend(1);
  const AttentionProblem problem({.q_len = 2, .kv_len = 100});
  PagedKv paged(*backend, problem, {.page_size = 32, .append_tokens = 7});
  const TaskOutput expected = RunTask(*backend, paged.Task(problem));
  std::vector<std::vector<char>> saved(4, std::vector<char>(paged.page_bytes()));
  std::vector<PageCopy> copies;
  for (int i = 0; i < 4; ++i) {
    copies.push_back({paged.page(i), saved[i].data(), paged.page_bytes()});
  }
  const PagedKv fresh(*backend, problem, {.page_size = 32, .append_tokens = 7});
  ASSERT_TRUE(backend->SavePages(copies).ok());
  // Elsewhere, and in another order.
  PagedKv other(*backend, AttentionProblem({.q_len = 2, .kv_len = 100, .seed = 2}),
                {.page_size = 32, .seed = 5});
  for (int i = 0; i < 4; ++i) copies[i].page = other.page(i);
  ASSERT_TRUE(backend->RestorePages(copies).ok());
  EXPECT_TRUE(SameBits(expected, RunTask(*backend, other.Task(problem))));
}

TEST_P(CudaStreamsTest, PagesAreCopiedAsAppended) {
  const auto backend = Backend(1);
  const AttentionProblem problem({.q_len = 2, .kv_len = 100});
  PagedKv paged(*backend, problem, {.page_size = 32, .append_tokens = 7});
  // Elsewhere, and in another order; it is not waited for before.
  PagedKv other(*backend, AttentionProblem({.q_len = 2, .kv_len = 100, .seed = 2}),
                {.page_size = 32, .seed = 5});
  std::vector<DevicePageCopy> copies;
  for (int i = 0; i < 4; ++i) copies.push_back({paged.page(i), other.page(i), paged.page_bytes()});
  ASSERT_TRUE(backend->CopyPages(copies).ok());
  EXPECT_TRUE(
      SameBits(RunTask(*backend, paged.Task(problem)), RunTask(*backend, other.Task(problem))));
}

// As the server's tensors are: large ones are copied from and to where they lie.
TEST(CudaPinnedTest, TensorsInPinnedMemoryGiveTheSameBits) {
  const AttentionProblem problem({.num_q_heads = 8,
                                  .head_dim_qk = 256,
                                  .head_dim_v = 256,
                                  .dtype = DType::kBFloat16,
                                  .kv_dtype = DType::kBFloat16,
                                  .q_len = 64,
                                  .kv_len = 64,
                                  .is_causal = true});
  AttentionTask task = problem.task();
  const std::size_t bytes = 64 * 8 * 256 * 2;
  const TaskOutput expected = RunTask(Cuda(), task);
  MemoryAllocator& pinned = Cuda().host_memory();
  auto* q = static_cast<char*>(pinned.Allocate(bytes));
  auto* o = static_cast<char*>(pinned.Allocate(bytes));
  std::memcpy(q, task.q.data, bytes);
  std::memset(o, 0xff, bytes);
  task.q.data = q;
  task.o = DenseRows(static_cast<void*>(o), DType::kBFloat16, 8, 256);
  RunTasks(Cuda(), {task});
  EXPECT_EQ(std::memcmp(o, expected.o_bytes.data(), bytes), 0);
  pinned.Free(q, bytes);
  pinned.Free(o, bytes);
}

INSTANTIATE_TEST_SUITE_P(Orders, CudaStreamsTest, ::testing::Range(0, kNumStreamOrders));

}  // namespace
}  // namespace attention::testing
