// Bits that must not change: whatever shares the batch, however rows arrive, however the cache is
// paged, however many threads run. Every comparison here is of bytes.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <vector>

#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cpu_targets.h"

namespace attention::testing {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};

// Different in every respect that a work item may depend on.
std::vector<ProblemSpec> MixedSpecs(int count) {
  std::vector<ProblemSpec> specs;
  for (int i = 0; i < count; ++i) {
    ProblemSpec spec;
    spec.num_kv_heads = 1 + i % 3;
    spec.num_q_heads = spec.num_kv_heads * (1 + i % 5);
    spec.head_dim_qk = 8 + i % 7 * 9;
    spec.head_dim_v = 5 + i % 4 * 16;
    spec.dtype = kDTypes[i % 3];
    spec.kv_dtype = kKvDTypes[i / 3 % 5];
    spec.kv_len = 1 + i * 37 % 1300;
    spec.q_len = i % 2 == 0 ? 1 : 1 + i * 5 % 40;
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

AttentionTask Rows(const AttentionTask& task, std::int64_t begin, std::int64_t end) {
  AttentionTask part = task;
  const auto shift = [](RowsView* rows, std::int64_t count) {
    rows->data = static_cast<const char*>(rows->data) +
                 count * rows->row_stride * static_cast<std::int64_t>(DTypeBytes(rows->dtype));
  };
  shift(&part.q, begin);
  part.q_len = end - begin;
  part.first_query_position = task.position(begin);
  if (part.bias.data != nullptr) {
    part.bias.data =
        static_cast<const char*>(task.bias.data) +
        begin * task.bias.row_stride * static_cast<std::int64_t>(DTypeBytes(task.bias.dtype));
  }
  if (part.mask.data != nullptr) part.mask.data += begin * task.mask.row_stride;
  return part;
}

TEST(InvarianceTest, ATaskAmongSixtyThreeOthersGivesTheBitsItGivesAlone) {
  const std::vector<ProblemSpec> specs = MixedSpecs(64);
  for (const TargetBackend& target : CpuTargets()) {
    std::deque<AttentionProblem> problems;
    std::deque<TaskOutput> outputs;
    std::vector<AttentionTask> tasks;
    for (const ProblemSpec& spec : specs) {
      AttentionTask task = problems.emplace_back(spec).task();
      outputs.emplace_back(task.params, task.q_len, task.kv_len).BindTo(&task);
      tasks.push_back(task);
    }
    RunTasks(*target.backend, tasks);
    for (std::size_t i = 0; i < specs.size(); ++i) {
      EXPECT_TRUE(SameBits(outputs[i], RunTask(*target.backend, problems[i].task())))
          << target.name << ": " << specs[i].Describe();
    }
  }
}

TEST(InvarianceTest, AnyNumberOfThreadsGivesTheSameBits) {
  const auto one = MakeCpu(1), two = MakeCpu(2), five = MakeCpu(5);
  std::vector<ProblemSpec> specs = MixedSpecs(24);
  // One row over many ranges: split among threads and merged.
  specs.push_back({.num_q_heads = 4, .num_kv_heads = 1, .q_len = 1, .kv_len = 9000});
  specs.push_back({.num_q_heads = 16,
                   .num_kv_heads = 1,
                   .q_len = 40,
                   .kv_len = 5000,
                   .is_causal = true,
                   .window_left = 700,
                   .sink_tokens = 20,
                   .has_sink_logits = true});
  for (const ProblemSpec& spec : specs) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const TaskOutput expected = RunTask(*one, problem.task());
    EXPECT_TRUE(SameBits(expected, RunTask(*two, problem.task())));
    EXPECT_TRUE(SameBits(expected, RunTask(*five, problem.task())));
  }
}

TEST(InvarianceTest, RowsOneByOneGiveTheBitsOfAllTogether) {
  for (ProblemSpec spec : MixedSpecs(36)) {
    if (spec.q_len == 1) spec.q_len = 14;
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    for (const TargetBackend& target : CpuTargets()) {
      const TaskOutput whole = RunTask(*target.backend, problem.task());
      for (std::int64_t row = 0; row < spec.q_len; ++row) {
        const TaskOutput part = RunTask(*target.backend, Rows(problem.task(), row, row + 1));
        ASSERT_TRUE(HoldsRows(whole, part, row)) << target.name << " row " << row;
      }
    }
  }
}

// A cache that grows chunk by chunk: each chunk attends with the kv_len it had then.
TEST(InvarianceTest, ChunksOfAPromptGiveTheBitsOfTheWhole) {
  for (DType dtype : kKvDTypes) {
    const ProblemSpec spec{.num_q_heads = 6,
                           .num_kv_heads = 2,
                           .dtype = RowTypeFor(dtype),
                           .kv_dtype = dtype,
                           .q_len = 700,
                           .kv_len = 700,
                           .is_causal = true};
    const AttentionProblem problem(spec);
    for (const TargetBackend& target : CpuTargets()) {
      if (target.name == "SCALAR" && dtype != DType::kFloat32) continue;  // 3 s each
      const PagedKv paged(*target.backend, problem, {.page_size = 64});
      const TaskOutput whole = RunTask(*target.backend, paged.Task(problem));
      const std::int64_t cuts[] = {0, 1, 2, 100, 356, 512, 699, 700};
      for (std::size_t i = 0; i + 1 < std::size(cuts); ++i) {
        AttentionTask task = Rows(paged.Task(problem), cuts[i], cuts[i + 1]);
        task.kv_len = cuts[i + 1];
        EXPECT_TRUE(HoldsRows(whole, RunTask(*target.backend, task), cuts[i]))
            << target.name << " rows from " << cuts[i];
      }
    }
  }
}

TEST(InvarianceTest, PagingLeavesNoTrace) {
  for (const ProblemSpec& spec : MixedSpecs(30)) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    for (const TargetBackend& target : CpuTargets()) {
      const TaskOutput expected = RunTask(*target.backend, problem.task());
      for (std::uint32_t seed : {1u, 2u}) {
        const PagedKv paged(*target.backend, problem,
                            {.page_size = seed == 1 ? 16 : 48, .seed = seed});
        EXPECT_TRUE(SameBits(expected, RunTask(*target.backend, paged.Task(problem))));
      }
    }
  }
}

TEST(InvarianceTest, MergeOfTwoKeyRangesEqualsTheirUnion) {
  const std::int64_t kv_len = 900, split = 300;
  const AttentionProblem problem({.q_len = 5, .kv_len = kv_len});
  for (const TargetBackend& target : CpuTargets()) {
    const TaskOutput whole = RunTask(*target.backend, problem.task());
    AttentionTask left_task = problem.task(), right_task = problem.task();
    left_task.kv_len = split;
    right_task.kv_begin = split;
    const TaskOutput left = RunTask(*target.backend, left_task);
    const TaskOutput right = RunTask(*target.backend, right_task);
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
}

}  // namespace
}  // namespace attention::testing
