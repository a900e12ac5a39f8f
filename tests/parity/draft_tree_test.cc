// Draft tokens that one step verifies as a tree: each sees what it would see were its branch the
// only one.
#include <gmock/gmock.h>

#include <random>
#include <vector>

#include "kernels/reference/reference_backend.h"
#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cpu_targets.h"

namespace attention::testing {
namespace {

std::vector<int> RandomTree(int rows, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int> parents;
  for (int row = 0; row < rows; ++row) {
    parents.push_back(static_cast<int>(random() % static_cast<unsigned>(row + 1)) - 1);
  }
  return parents;
}

std::vector<int> Chain(int rows) {
  std::vector<int> parents;
  for (int row = 0; row < rows; ++row) parents.push_back(row - 1);
  return parents;
}

// `cached` tokens and a tree of drafts behind them.
ProblemSpec TreeOf(std::vector<int> parents, std::int64_t cached) {
  ProblemSpec spec;
  spec.q_len = static_cast<std::int64_t>(parents.size());
  spec.kv_len = cached + spec.q_len;
  spec.parents = std::move(parents);
  return spec;
}

std::vector<ProblemSpec> TreeSpecs() {
  std::vector<ProblemSpec> specs;
  const auto add = [&](int rows, std::int64_t cached, auto change) {
    const auto seed = static_cast<std::uint32_t>(specs.size());
    change(specs.emplace_back(TreeOf(RandomTree(rows, seed), cached)));
    specs.back().seed = seed;
  };
  const auto nothing = [](ProblemSpec&) {};
  for (int rows : {1, 2, 16, 17, 40, 65, 130}) add(rows, 37, nothing);
  for (std::int64_t cached : {0, 1, 15, 16, 500, 512, 1000}) add(20, cached, nothing);
  add(30, 100, [](ProblemSpec& s) { s.is_causal = true; });
  add(30, 100, [](ProblemSpec& s) { s.has_alibi = true; });
  for (std::int64_t window : {0, 1, 3, 20, 200}) {
    add(30, 100, [&](ProblemSpec& s) { s.window_left = window; });
    add(30, 3,
        [&](ProblemSpec& s) { s.window_left = window, s.sink_tokens = 5, s.has_alibi = true; });
    add(30, 700, [&](ProblemSpec& s) { s.window_left = window, s.sink_tokens = 5; });
  }
  add(30, 100, [](ProblemSpec& s) { s.kv_begin = 100, s.window_right = 0; });
  add(30, 100, [](ProblemSpec& s) { s.soft_cap = 3, s.has_sink_logits = true; });
  add(30, 100, [](ProblemSpec& s) { s.bias = s.mask = BiasOrMask::kPerHead; });
  add(30, 600, [](ProblemSpec& s) { s.num_q_heads = 16, s.head_dim_qk = 80, s.head_dim_v = 48; });
  add(12, 300, [](ProblemSpec& s) {
    s.num_q_heads = 8, s.num_kv_heads = 1, s.head_dim_qk = 40, s.value_is_key_prefix = true;
  });
  return specs;
}

// The reference of a tree is that of each branch by itself.
TEST(DraftTreeTest, ARowSeesWhatItWouldSeeWereItsBranchTheOnlyOne) {
  for (const ProblemSpec& spec : TreeSpecs()) {
    if (spec.bias != BiasOrMask::kNone) continue;  // by the places of keys, which differ
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    const AttentionTask tree = problem.StoredTask();
    const reference::ReferenceResult expected = reference::ReferenceAttention(tree, {});
    const std::int64_t cached = tree.first_query_position;
    for (std::int64_t row = 0; row < spec.q_len; row += 3) {
      const std::vector<std::int64_t> path = problem.PathTo(row);
      const auto branch_of = [&](const RowsView& rows) {
        const auto* from = static_cast<const float*>(rows.data);
        std::vector<float> branch(from, from + cached * rows.row_stride);
        for (std::int64_t draft : path) {
          const float* at = from + (cached + draft) * rows.row_stride;
          branch.insert(branch.end(), at, at + rows.row_stride);
        }
        return branch;
      };
      const std::vector<float> k = branch_of(tree.k), v = branch_of(tree.v);
      AttentionTask linear = RowsOf(tree, row, row + 1);
      linear.params.is_tree = false;
      linear.params.is_causal = true;
      linear.tree = {};
      linear.kv_len = cached + static_cast<std::int64_t>(path.size());
      linear.first_query_position = linear.kv_len - 1;
      linear.k.data = k.data();
      linear.v.data = v.data();
      const reference::ReferenceResult alone = reference::ReferenceAttention(linear, {});
      for (std::size_t i = 0; i < alone.o.size(); ++i) {
        ASSERT_NEAR(alone.o[i], expected.o[static_cast<std::size_t>(row) * alone.o.size() + i],
                    1e-12);
      }
    }
  }
}

TEST(DraftTreeTest, EveryTargetAgreesWithTheReference) {
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    for (const ProblemSpec& spec : TreeSpecs()) ExpectParity(*target.backend, spec, 48);
  }
}

TEST(DraftTreeTest, EveryTypeOfCacheAgreesWithTheReference) {
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    for (DType dtype : kKvDTypes) {
      ProblemSpec spec = TreeOf(RandomTree(33, 5), 600);
      spec.kv_dtype = dtype;
      spec.dtype = RowTypeFor(dtype);
      spec.window_left = 400;
      ExpectParity(*target.backend, spec, 64);
    }
  }
}

TEST(DraftTreeTest, AChainHasTheBitsOfACausalStep) {
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    for (std::int64_t window : {-1, 4, 300}) {
      ProblemSpec spec = TreeOf(Chain(50), 580);
      spec.window_left = window;
      spec.sink_tokens = 3;
      spec.has_alibi = true;
      spec.is_causal = true;
      const TaskOutput tree = RunTask(*target.backend, AttentionProblem(spec).task());
      spec.parents = {};
      EXPECT_TRUE(SameBits(tree, RunTask(*target.backend, AttentionProblem(spec).task())));
    }
  }
}

// The branch that comes first lies as it would alone.
TEST(DraftTreeTest, RowsOfTheFirstBranchHaveTheBitsOfThatBranchAlone) {
  std::vector<int> parents = Chain(20);
  for (int row : RandomTree(20, 3)) parents.push_back(row);
  for (const TargetBackend& target : CpuTargets()) {
    const AttentionProblem problem(TreeOf(parents, 500));
    const TaskOutput whole = RunTask(*target.backend, problem.task());
    AttentionTask branch = RowsOf(problem.task(), 0, 20);
    branch.params.is_tree = false;
    branch.params.is_causal = true;
    branch.tree = {};
    branch.kv_len = 520;
    EXPECT_TRUE(HoldsRows(whole, RunTask(*target.backend, branch), 0)) << target.name;
  }
}

TEST(DraftTreeTest, ATreeHasTheBitsOfAMaskThatSaysTheSame) {
  const AttentionProblem problem(TreeOf(RandomTree(70, 9), 490));
  std::vector<std::uint8_t> mask;
  for (std::int64_t row = 0; row < 70; ++row) {
    for (std::int64_t key = 0; key < 560; ++key) {
      mask.push_back(key < 490 || problem.task().tree.IsAncestor(row, key - 490) ? 1 : 0);
    }
  }
  for (const TargetBackend& target : CpuTargets()) {
    AttentionTask masked = problem.task();
    masked.params.is_tree = false;
    masked.tree = {};
    masked.mask = {mask.data(), 0, 560};
    EXPECT_TRUE(
        SameBits(RunTask(*target.backend, problem.task()), RunTask(*target.backend, masked)))
        << target.name;
  }
}

TEST(DraftTreeTest, AnyNumberOfThreadsGivesTheSameBits) {
  const AttentionProblem problem(TreeOf(RandomTree(9, 2), 5000));
  const TaskOutput expected = RunTask(*MakeCpu(1), problem.task());
  for (int threads : {2, 7}) {
    EXPECT_TRUE(SameBits(expected, RunTask(*MakeCpu(threads), problem.task())));
  }
}

// A value that a row does not see must not matter, NaN or not.
TEST(DraftTreeTest, DraftsOfOtherBranchesNeverMatter) {
  const ProblemSpec spec = TreeOf({-1, 0, 0, 1, 2, -1}, 40);
  const AttentionProblem clean(spec);
  AttentionProblem poisoned(spec);
  for (int head = 0; head < spec.num_kv_heads; ++head) {
    for (int i = 0; i < spec.head_dim_v; ++i) {
      poisoned.SetKey(42, head, i, NAN);
      poisoned.SetValue(42, head, i, NAN);
    }
  }
  std::vector<std::int64_t> seeing;  // rows 2 and 4
  for (std::int64_t row : {2, 4}) {
    for (int head = 0; head < spec.num_q_heads; ++head) {
      seeing.push_back(row * spec.num_q_heads + head);
    }
  }
  for (const TargetBackend& target : CpuTargets()) {
    const TaskOutput result = RunTask(*target.backend, poisoned.task());
    EXPECT_EQ(NonFiniteRows(result), seeing) << target.name;
    EXPECT_TRUE(SameBitsOutside(RunTask(*target.backend, clean.task()), result, seeing));
  }
}

TEST(DraftTreeTest, ATreeThatIsNotOneOfTheStepsRowsIsRefusedByName) {
  const auto backend = MakeCpu(1);
  const auto refusal = [&](void (*spoil)(AttentionTask*)) {
    const AttentionProblem problem(TreeOf({-1, 0, 1}, 10));
    AttentionTask task = problem.task();
    TaskOutput output(task.params, task.q_len, task.kv_len);
    output.BindTo(&task);
    spoil(&task);
    return std::string(backend->Plan({&task, 1}).status().message());
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(refusal([](AttentionTask* task) { task->tree = {}; }), HasSubstr("tree is missing"));
  EXPECT_THAT(refusal([](AttentionTask* task) { task->params.is_tree = false; }),
              HasSubstr("tree is given"));
  EXPECT_THAT(refusal([](AttentionTask* task) { task->tree.depths = nullptr; }),
              HasSubstr("tree.depths is missing"));
  EXPECT_THAT(refusal([](AttentionTask* task) { task->tree.words_per_row = 0; }),
              HasSubstr("tree.words_per_row is 0"));
  EXPECT_THAT(refusal([](AttentionTask* task) { task->kv_len = 12; }), HasSubstr("kv_len is 12"));
  EXPECT_THAT(refusal([](AttentionTask* task) { task->kv_begin = 11; }),
              HasSubstr("first_query_position is 10"));
}

}  // namespace
}  // namespace attention::testing
