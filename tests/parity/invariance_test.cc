// Bits that must not change: whatever shares the batch, however rows arrive, however the cache is
// paged, in whichever order the work is done. Every comparison here is of bytes.
#include <gmock/gmock.h>

#include <cmath>
#include <vector>

#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"

namespace attention::testing {
namespace {

class InvarianceTest : public BackendTest {};

ATTENTION_TEST_ON_BACKEND(InvarianceTest);

TEST_P(InvarianceTest, ATaskAmongSixtyThreeOthersGivesTheBitsItGivesAlone) {
  const std::vector<ProblemSpec> specs = MixedSpecs(tested(), 64);
  for (const TargetBackend& target : targets()) {
    SCOPED_TRACE(target.name);
    const Batch together(specs, /*wants_column_sums=*/true), alone(specs, true);
    RunTasks(*target.backend, together.tasks());
    for (const AttentionTask& task : alone.tasks()) RunTasks(*target.backend, {task});
    together.ExpectBitsOf(alone);
  }
}

TEST_P(InvarianceTest, AnyOrderOfWorkGivesTheSameBits) {
  std::vector<ProblemSpec> specs = MixedSpecs(tested(), 24);
  specs.insert(specs.end(), tested().merged_specs.begin(), tested().merged_specs.end());
  const auto backends = tested().make_in_other_orders();
  const Batch expected(specs), expected_sums(tested().merged_specs, /*wants_column_sums=*/true);
  RunTasks(*backends[0], expected.tasks());
  RunTasks(*backends[0], expected_sums.tasks());
  for (const auto& backend : backends) {
    const Batch together(specs), alone(specs), sums(tested().merged_specs, true);
    RunTasks(*backend, together.tasks());
    for (const AttentionTask& task : alone.tasks()) RunTasks(*backend, {task});
    for (const AttentionTask& task : sums.tasks()) RunTasks(*backend, {task});
    together.ExpectBitsOf(expected);
    alone.ExpectBitsOf(expected);
    sums.ExpectBitsOf(expected_sums);
  }
}

TEST_P(InvarianceTest, PagingLeavesNoTrace) {
  for (const ProblemSpec& spec : MixedSpecs(tested(), 30)) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    for (const TargetBackend& target : targets()) {
      const TaskOutput expected = RunTask(*target.backend, problem.task());
      for (std::uint32_t seed : {1u, 2u}) {
        const PagedKv paged(*target.backend, problem,
                            {.page_size = seed == 1 ? 16 : 48, .seed = seed});
        EXPECT_TRUE(SameBits(expected, RunTask(*target.backend, paged.Task(problem))))
            << target.name;
      }
    }
  }
}

// A cache that grows chunk by chunk: each chunk attends with the kv_len it had then.
TEST_P(InvarianceTest, ChunksOfAPromptGiveTheBitsOfTheWhole) {
  const std::int64_t length = tested().prefill_cuts.back();
  for (const TargetBackend& target : targets()) {
    SCOPED_TRACE(target.name);
    for (DType dtype : kKvDTypes) {
      if (target.name == "SCALAR" && dtype != DType::kFloat32) {
        std::printf("[  SKIPPED ] SCALAR with %s: 3 s for each type\n",
                    std::string(DTypeName(dtype)).c_str());
        continue;
      }
      ExpectBitsOfChunks(*target.backend,
                         {.num_q_heads = 6,
                          .num_kv_heads = 2,
                          .dtype = RowTypeFor(dtype),
                          .kv_dtype = dtype,
                          .q_len = length,
                          .kv_len = length,
                          .is_causal = true},
                         tested().prefill_cuts);
    }
  }
}

// Steps that see as many keys have the same ranges, so rows may come together or one by one.
TEST_P(InvarianceTest, RowsOfADecodeStepOneByOneGiveTheBitsOfAllTogether) {
  for (DType dtype : kKvDTypes) {
    ExpectBitsOfRowsOneByOne(targets(), {.num_q_heads = 4,
                                         .num_kv_heads = 2,
                                         .dtype = RowTypeFor(dtype),
                                         .kv_dtype = dtype,
                                         .q_len = 8,
                                         .kv_len = 900,
                                         .is_causal = true});
  }
}

TEST_P(InvarianceTest, MergeOfTwoKeyRangesEqualsTheirUnion) {
  const std::int64_t kv_len = 900, split = 300;
  const AttentionProblem problem({.q_len = 5, .kv_len = kv_len});
  for (const TargetBackend& target : targets()) {
    SCOPED_TRACE(target.name);
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
