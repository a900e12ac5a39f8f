// The CPU backend's own promises, beyond those that every backend gives: rows have their bits
// however few come together, and memory that no row can see may be gone.
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <cstring>

#include "kernels/cpu/block_matmul.h"
#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"

namespace attention::testing {
namespace {

TEST(CpuTest, RowsOneByOneGiveTheBitsOfAllTogether) {
  for (ProblemSpec spec : MixedSpecs(Tested(), 36)) {
    if (spec.q_len == 1) spec.q_len = 14;
    ExpectBitsOfRowsOneByOne(CpuTargets(), spec);
  }
}

// Pages that no row of the task can see may be spilled or freed: they are made inaccessible here.
TEST(CpuTest, PagesOutsideTheWindowMayBeInaccessible) {
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
      munmap(memory, num_pages * stride);
    }
  }
}

TEST(BlockMatmulTest, BlocksFillUpWhenThatCostsLessThanSmallerOnes) {
  const cpu::BlockMatmul matmul(64, 64);
  ASSERT_FALSE(matmul.block_rows().empty());
  for (std::int64_t left = 1; left < 600; ++left) {
    const std::int64_t rows = matmul.RowsFor(left);
    EXPECT_GE(rows, 1);
    if (rows > left && rows != matmul.block_rows().front()) {
      EXPECT_LT(rows, 2 * left);
    }
  }
  EXPECT_EQ(matmul.RowsFor(10000), matmul.max_rows());
}

}  // namespace
}  // namespace attention::testing
