// What a row does not see cannot touch it, and what is broken in what it sees reaches it.
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/packed_layout.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cpu_targets.h"

namespace attention::testing {
namespace {

constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(InvisibleTest, BytesPastTheEndOfPagesNeverMatter) {
  for (DType dtype : kKvDTypes) {
    for (std::int64_t kv_len : {1, 2, 15, 17, 33, 513}) {
      // Odd dims leave padding within pairs and vectors, poisoned like the rest.
      const AttentionProblem problem(
          {.head_dim_qk = 13, .head_dim_v = 21, .kv_dtype = dtype, .q_len = 3, .kv_len = kv_len});
      for (const TargetBackend& target : CpuTargets()) {
        const PagedKv zeros(*target.backend, problem, {.page_size = 64, .poison = 0});
        const PagedKv nans(*target.backend, problem, {.page_size = 64, .poison = 0xff});
        const TaskOutput result = RunTask(*target.backend, nans.Task(problem));
        EXPECT_TRUE(SameBits(RunTask(*target.backend, zeros.Task(problem)), result))
            << target.name << " kv_len " << kv_len;
        EXPECT_THAT(BrokenRows(result), ::testing::IsEmpty());
      }
    }
  }
}

struct MaskedCase {
  const char* name;
  ProblemSpec spec;
};

// Every key that some row does not see is NaN or infinite in a second copy of the problem; rows
// that see none of the poisoned keys must keep their bits.
TEST(InvisibleTest, ValuesAndKeysThatARowDoesNotSeeNeverMatter) {
  const MaskedCase cases[] = {
      {"causal", {.q_len = 40, .kv_len = 40, .is_causal = true}},
      {"window", {.q_len = 60, .kv_len = 60, .window_left = 5, .window_right = 5}},
      {"sinks", {.q_len = 60, .kv_len = 60, .is_causal = true, .window_left = 5, .sink_tokens = 3}},
      {"ranges", {.num_q_heads = 2, .q_len = 13, .kv_len = 1050, .is_causal = true}},
      {"mask", {.q_len = 30, .kv_len = 70, .mask = Plane::kShared}},
      {"capped", {.q_len = 30, .kv_len = 70, .is_causal = true, .soft_cap = 5, .has_alibi = true}},
  };
  for (const MaskedCase& masked : cases) {
    for (DType dtype : kKvDTypes) {
      ProblemSpec spec = masked.spec;
      spec.kv_dtype = dtype;
      const AttentionProblem clean(spec);
      for (std::int64_t key : {spec.kv_len - 1, spec.kv_len - 9, spec.kv_len / 2 + 3}) {
        for (float poison : {kNaN, kInf, -kInf}) {
          AttentionProblem poisoned(spec);
          for (int head = 0; head < spec.num_kv_heads; ++head) {
            poisoned.SetKey(key, head, 3, kNaN);
            for (int i = 0; i < spec.head_dim_v; ++i) poisoned.SetValue(key, head, i, poison);
          }
          const AttentionTask& task = clean.task();
          std::vector<std::int64_t> seeing;
          for (std::int64_t query = 0; query < spec.q_len; ++query) {
            const VisibleKeys keys = VisibleKeysOf(task, task.position(query));
            bool is_visible = (keys.begin <= key && key < keys.end) || key < keys.sink_end;
            if (task.mask.data != nullptr) {
              is_visible &=
                  task.mask.data[query * task.mask.row_stride + key * task.mask.key_stride] != 0;
            }
            for (int head = 0; is_visible && head < spec.num_q_heads; ++head) {
              seeing.push_back(query * spec.num_q_heads + head);
            }
          }
          for (const TargetBackend& target : CpuTargets()) {
            const TaskOutput result = RunTask(*target.backend, poisoned.task());
            EXPECT_EQ(BrokenRows(result), seeing) << masked.name << " " << target.name;
            EXPECT_TRUE(SameBitsOutside(RunTask(*target.backend, clean.task()), result, seeing))
                << masked.name << " " << target.name << " key " << key << " poison " << poison;
          }
        }
      }
    }
  }
}

TEST(InvisibleTest, ANaNQueryBreaksItsOwnRowOnly) {
  const ProblemSpec spec{.q_len = 20, .kv_len = 600, .is_causal = true};
  const AttentionProblem clean(spec);
  AttentionProblem broken(spec);
  broken.SetQuery(7, 2, 5, kNaN);
  for (const TargetBackend& target : CpuTargets()) {
    const TaskOutput result = RunTask(*target.backend, broken.task());
    EXPECT_THAT(BrokenRows(result), ::testing::ElementsAre(7 * 4 + 2));
    EXPECT_TRUE(SameBitsOutside(RunTask(*target.backend, clean.task()), result, {7 * 4 + 2}));
  }
}

TEST(InvisibleTest, RowsWithNothingVisibleAreZeroWithLseOfMinusInfinity) {
  AttentionProblem problem({.q_len = 9, .kv_len = 40, .mask = Plane::kShared});
  for (std::int64_t row : {0, 4, 8}) {
    std::fill_n(problem.mask().begin() + row * 40, 40, std::uint8_t{0});
  }
  for (const TargetBackend& target : CpuTargets()) {
    const TaskOutput result = RunTask(*target.backend, problem.task());
    for (std::int64_t row = 0; row < 9; ++row) {
      for (int head = 0; head < 4; ++head) {
        EXPECT_EQ(std::isinf(result.lse[row * 4 + head]), row % 4 == 0);
        for (int i = 0; i < 32; ++i) {
          EXPECT_EQ(result.o((row * 4 + head) * 32 + i) == 0.0f, row % 4 == 0);
        }
      }
    }
  }
}

TEST(InvisibleTest, ASinkLogitAloneGivesZeroAndItselfAsLse) {
  AttentionProblem problem(
      {.q_len = 3, .kv_len = 20, .has_sink_logits = true, .mask = Plane::kShared});
  std::fill(problem.mask().begin(), problem.mask().end(), std::uint8_t{0});
  for (const TargetBackend& target : CpuTargets()) {
    const TaskOutput result = RunTask(*target.backend, problem.task());
    for (int row = 0; row < 12; ++row) {
      EXPECT_FLOAT_EQ(result.lse[row], problem.task().sink_logits[row % 4]);
      EXPECT_EQ(result.o(row * 32), 0.0f);
    }
  }
}

TEST(InvisibleTest, ABiasOfMinusInfinityMasksAKeyWhateverItsValueHolds) {
  ProblemSpec spec{.q_len = 6, .kv_len = 40};
  AttentionProblem problem(spec);
  std::vector<float> bias(6 * 40, 0.0f);
  for (int row = 0; row < 6; ++row) bias[row * 40 + 11] = -kInf;
  for (int head = 0; head < 2; ++head) problem.SetValue(11, head, 4, kNaN);
  AttentionTask task = problem.task();
  task.bias = {bias.data(), DType::kFloat32, 0, 40};
  for (const TargetBackend& target : CpuTargets()) {
    EXPECT_THAT(BrokenRows(RunTask(*target.backend, task)), ::testing::IsEmpty());
  }
}

TEST(InvisibleTest, APartOfBiasAndMaskPastTheLastKeyIsNotRead) {
  // The plane ends at the end of a page that is followed by an inaccessible one.
  const std::int64_t q_len = 5, kv_len = 21;
  const std::size_t page = 4096;
  auto* memory = static_cast<char*>(
      mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(mprotect(memory + page, page, PROT_NONE), 0);
  const AttentionProblem problem({.q_len = q_len, .kv_len = kv_len});
  AttentionTask task = problem.task();
  for (const TargetBackend& target : CpuTargets()) {
    task.bias = {memory + page - q_len * kv_len * 4, DType::kFloat32, 0, kv_len};
    RunTask(*target.backend, task);
    task.bias = {};
    task.mask = {reinterpret_cast<std::uint8_t*>(memory + page - q_len * kv_len), 0, kv_len};
    RunTask(*target.backend, task);
    task.mask = {};
  }
  munmap(memory, 2 * page);
}

// Pages that no row of the task can see may be spilled or freed: they are made inaccessible here.
TEST(InvisibleTest, PagesOutsideTheWindowAreNotRead) {
  const std::int64_t page_size = 64, num_pages = 40, kv_len = page_size * num_pages;
  for (DType dtype : kKvDTypes) {
    const AttentionProblem problem({.kv_dtype = dtype,
                                    .q_len = 6,
                                    .kv_len = kv_len,
                                    .is_causal = true,
                                    .window_left = 130,
                                    .sink_tokens = 10});
    for (const TargetBackend& target : CpuTargets()) {
      PagedKv paged(*target.backend, problem, {.page_size = page_size});
      const TaskOutput expected = RunTask(*target.backend, paged.Task(problem));
      const std::size_t stride = (paged.page_bytes() + 4095) / 4096 * 4096;
      auto* memory = static_cast<char*>(mmap(nullptr, num_pages * stride, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      ASSERT_NE(memory, MAP_FAILED);
      for (std::int64_t i = 0; i < num_pages; ++i) {
        char* page = memory + i * stride;
        std::memcpy(page, paged.page(i), paged.page_bytes());
        // Sinks are in page 0; the oldest query sees keys from kv_len - 6 - 130 on, in page 37.
        if (i > 0 && i < 37) {
          ASSERT_EQ(mprotect(page, stride, PROT_NONE), 0);
        }
        paged.table()[i] = page;
      }
      EXPECT_TRUE(SameBits(expected, RunTask(*target.backend, paged.Task(problem)))) << target.name;
      for (std::int64_t i = 1; i < 37; ++i) paged.table()[i] = nullptr;
      EXPECT_TRUE(SameBits(expected, RunTask(*target.backend, paged.Task(problem)))) << target.name;
      munmap(memory, num_pages * stride);
    }
  }
}

// The workspace of contiguous tasks is reused: what an earlier run left there must not show.
TEST(InvisibleTest, EarlierRunsLeaveNoTrace) {
  const AttentionProblem problem({.head_dim_v = 21, .q_len = 7, .kv_len = 45, .is_causal = true});
  AttentionProblem poison({.head_dim_v = 21, .q_len = 7, .kv_len = 700});
  for (std::int64_t key = 0; key < 700; ++key) {
    for (int head = 0; head < 2; ++head) {
      for (int i = 0; i < 32; ++i) poison.SetKey(key, head, i, kNaN);
      for (int i = 0; i < 21; ++i) poison.SetValue(key, head, i, kNaN);
    }
  }
  for (const TargetBackend& target : CpuTargets()) {
    const auto fresh = MakeCpu(1, target.highway_target);
    const TaskOutput expected = RunTask(*fresh, problem.task());
    RunTask(*fresh, poison.task());
    EXPECT_TRUE(SameBits(expected, RunTask(*fresh, problem.task()))) << target.name;
  }
}

}  // namespace
}  // namespace attention::testing
