// Bytes that a row does not see cannot touch it, and values that are not finite reach the rows that
// see them.
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"

namespace attention::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

class InvisibleTest : public BackendTest {};

ATTENTION_TEST_ON_BACKEND(InvisibleTest);

TEST_P(InvisibleTest, BytesPastTheEndOfPagesNeverMatter) {
  for (DType dtype : kKvDTypes) {
    for (std::int64_t kv_len : {1, 2, 15, 17, 33, 213, 513}) {
      // Odd dims leave padding within pairs and vectors, poisoned like the rest.
      const AttentionProblem problem({.head_dim_qk = 13,
                                      .head_dim_v = 21,
                                      .dtype = tested().query_type(dtype),
                                      .kv_dtype = dtype,
                                      .q_len = 3,
                                      .kv_len = kv_len});
      for (const TargetBackend& target : targets()) {
        const PagedKv zeros(*target.backend, problem, {.page_size = 64, .poison = 0});
        const PagedKv nans(*target.backend, problem, {.page_size = 64, .poison = 0xff});
        const TaskOutput result = RunTask(*target.backend, nans.Task(problem));
        EXPECT_TRUE(SameBits(RunTask(*target.backend, zeros.Task(problem)), result))
            << target.name << " kv_len " << kv_len;
        EXPECT_THAT(NonFiniteRows(result), ::testing::IsEmpty());
      }
    }
  }
}

TEST_P(InvisibleTest, ValuesAndKeysThatARowDoesNotSeeNeverMatter) {
  const ProblemSpec cases[] = {
      {.q_len = 40, .kv_len = 40, .is_causal = true},
      {.q_len = 70, .kv_len = 70, .window_left = 5, .window_right = 5},
      {.q_len = 60, .kv_len = 60, .is_causal = true, .window_left = 5, .sink_tokens = 3},
      {.num_q_heads = 2, .q_len = 13, .kv_len = tested().ranges_kv_len, .is_causal = true},
      {.q_len = 30, .kv_len = 70, .mask = BiasOrMask::kShared},
      {.q_len = 30, .kv_len = 70, .is_causal = true, .soft_cap = 5, .has_alibi = true},
      {.head_dim_v = 130, .q_len = 30, .kv_len = 70, .is_causal = true},
  };
  for (ProblemSpec spec : cases) {
    for (DType dtype : kKvDTypes) {
      spec.kv_dtype = dtype;
      spec.dtype = tested().query_type(dtype);
      for (const TargetBackend& target : targets()) {
        SCOPED_TRACE(target.name);
        ExpectInvisibleKeysNeverMatter(*target.backend, spec);
      }
    }
  }
}

// A finite key beside a value that is not: the scores do not tell.
TEST_P(InvisibleTest, AnInfiniteValueReachesItsChannelOfTheRowsThatSeeIt) {
  for (DType dtype : kDTypes) {
    for (const TargetBackend& target : targets()) {
      SCOPED_TRACE(target.name);
      ExpectAnInfiniteValueStaysInItsChannel(
          *target.backend,
          {.dtype = dtype, .kv_dtype = dtype, .q_len = 100, .kv_len = 100, .is_causal = true},
          /*key=*/70);
    }
  }
}

TEST_P(InvisibleTest, ANaNQueryReachesItsOwnRowOnly) {
  const ProblemSpec spec{.q_len = 20, .kv_len = 600, .is_causal = true};
  const AttentionProblem clean(spec);
  AttentionProblem with_nan(spec);
  with_nan.SetQuery(7, 2, 5, kNaN);
  for (const TargetBackend& target : targets()) {
    const TaskOutput result = RunTask(*target.backend, with_nan.task());
    EXPECT_THAT(NonFiniteRows(result), ::testing::ElementsAre(7 * 4 + 2));
    EXPECT_TRUE(SameBitsOutside(RunTask(*target.backend, clean.task()), result, {7 * 4 + 2}));
  }
}

TEST_P(InvisibleTest, RowsWithNothingVisibleAreZeroWithLseOfMinusInfinity) {
  for (DType dtype : kKvDTypes) {
    AttentionProblem problem({.dtype = tested().query_type(dtype),
                              .kv_dtype = dtype,
                              .q_len = 9,
                              .kv_len = 40,
                              .mask = BiasOrMask::kShared});
    for (std::int64_t row : {0, 4, 8}) {
      std::fill_n(problem.mask().begin() + row * 40, 40, std::uint8_t{0});
    }
    for (const TargetBackend& target : targets()) {
      SCOPED_TRACE(target.name);
      const TaskOutput result = RunTask(*target.backend, problem.task());
      for (std::int64_t row = 0; row < 36; ++row) {
        EXPECT_EQ(std::isinf(result.lse[row]), row / 4 % 4 == 0);
        for (int i = 0; i < 32; ++i) EXPECT_EQ(result.o(row * 32 + i) == 0.0f, row / 4 % 4 == 0);
      }
    }
  }
}

TEST_P(InvisibleTest, ASinkLogitAloneGivesZeroAndItselfAsLse) {
  AttentionProblem problem(
      {.q_len = 3, .kv_len = 20, .has_sink_logits = true, .mask = BiasOrMask::kShared});
  std::fill(problem.mask().begin(), problem.mask().end(), std::uint8_t{0});
  for (const TargetBackend& target : targets()) {
    const TaskOutput result = RunTask(*target.backend, problem.task());
    for (int row = 0; row < 12; ++row) {
      EXPECT_FLOAT_EQ(result.lse[row], problem.task().sink_logits[row % 4]);
      EXPECT_EQ(result.o(row * 32), 0.0f);
    }
  }
}

TEST_P(InvisibleTest, ABiasOfMinusInfinityMasksAKeyWhateverItsValueHolds) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    AttentionProblem problem({.dtype = dtype, .kv_dtype = dtype, .q_len = 6, .kv_len = 40});
    std::vector<float> bias(6 * 40, 0.0f);
    for (int row = 0; row < 6; ++row) bias[row * 40 + 11] = -kInf;
    for (int head = 0; head < 2; ++head) problem.SetValue(11, head, 4, kNaN);
    AttentionTask task = problem.task();
    task.bias = {bias.data(), DType::kFloat32, 0, 40};
    for (const TargetBackend& target : targets()) {
      EXPECT_THAT(NonFiniteRows(RunTask(*target.backend, task)), ::testing::IsEmpty())
          << target.name;
    }
  }
}

TEST_P(InvisibleTest, APartOfBiasAndMaskPastTheLastKeyIsNotRead) {
  // Bias and mask end at the end of a page that is followed by an inaccessible one.
  const std::int64_t q_len = 5, kv_len = 21;
  const std::size_t page = 4096;
  auto* memory = static_cast<char*>(
      mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(mprotect(memory + page, page, PROT_NONE), 0);
  const AttentionProblem problem({.q_len = q_len, .kv_len = kv_len});
  AttentionTask task = problem.task();
  for (const TargetBackend& target : targets()) {
    task.bias = {memory + page - q_len * kv_len * 4, DType::kFloat32, 0, kv_len};
    RunTask(*target.backend, task);
    task.bias = {};
    task.mask = {reinterpret_cast<std::uint8_t*>(memory + page - q_len * kv_len), 0, kv_len};
    RunTask(*target.backend, task);
    task.mask = {};
  }
  munmap(memory, 2 * page);
}

// Pages that no row of the task can see may be spilled or freed.
TEST_P(InvisibleTest, PagesOutsideTheWindowAreNotRead) {
  const std::int64_t page_size = 64, num_pages = 40;
  for (DType dtype : kKvDTypes) {
    const AttentionProblem problem({.dtype = tested().query_type(dtype),
                                    .kv_dtype = dtype,
                                    .q_len = 6,
                                    .kv_len = page_size * num_pages,
                                    .is_causal = true,
                                    .window_left = 130,
                                    .sink_tokens = 10});
    for (const TargetBackend& target : targets()) {
      PagedKv paged(*target.backend, problem, {.page_size = page_size});
      const TaskOutput expected = RunTask(*target.backend, paged.Task(problem));
      // Sinks are in page 0; the oldest query sees keys from kv_len - 6 - 130 on, in page 37.
      for (std::int64_t i = 1; i < 37; ++i) paged.table()[i] = nullptr;
      EXPECT_TRUE(SameBits(expected, RunTask(*target.backend, paged.Task(problem)))) << target.name;
    }
  }
}

// The workspace of contiguous tasks is reused: what an earlier run left there must not show.
TEST_P(InvisibleTest, EarlierRunsLeaveNoTrace) {
  const AttentionProblem problem({.head_dim_v = 21, .q_len = 7, .kv_len = 45, .is_causal = true});
  AttentionProblem poison({.head_dim_v = 21, .q_len = 7, .kv_len = 700});
  for (std::int64_t key = 0; key < 700; ++key) {
    for (int head = 0; head < 2; ++head) {
      for (int i = 0; i < 32; ++i) poison.SetKey(key, head, i, kNaN);
      for (int i = 0; i < 21; ++i) poison.SetValue(key, head, i, kNaN);
    }
  }
  for (const TargetBackend& target : targets()) {
    const auto fresh = tested().make(target);
    const TaskOutput expected = RunTask(*fresh, problem.task());
    RunTask(*fresh, poison.task());
    EXPECT_TRUE(SameBits(expected, RunTask(*fresh, problem.task()))) << target.name;
  }
}

}  // namespace
}  // namespace attention::testing
