// Caches of types with row scales: every instruction set and the reference write the values that
// are documented, and read them as what they are.
#include <gmock/gmock.h>

#include <cstring>
#include <string>

#include "kernels/cpu/packed_layout.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cpu_targets.h"
#include "tests/support/problem_variants.h"
#include "tests/support/quantized_pages.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

constexpr DType kScaledDTypes[] = {DType::kInt8, DType::kFloat8E4M3};

float FloatAt(const char* address) {
  float value;
  std::memcpy(&value, address, sizeof(value));
  return value;
}

PageReader ReaderOfCpu(const KvGeometry& geometry, std::int64_t page_size) {
  const cpu::PackedLayout layout = cpu::MakePackedLayout(geometry, page_size);
  const auto block = [layout](const StoredRow& row) {
    const int index = row.token / cpu::kBlockTokens;
    return row.page + (row.is_value ? layout.value_offset(row.head, index)
                                    : layout.key_offset(row.head, index));
  };
  return {.quantized =
              [layout, block](const StoredRow& row, int dim) {
                const int token = row.token % cpu::kBlockTokens;
                const std::size_t element =
                    row.is_value ? cpu::ValueIndex(false, layout.padded_dim_v, token, dim)
                                 : cpu::KeyIndex(false, token, dim);
                return static_cast<std::uint8_t>(block(row)[cpu::kScaleBytes + element]);
              },
          .scale =
              [block](const StoredRow& row) {
                return FloatAt(block(row) + row.token % cpu::kBlockTokens * sizeof(float));
              }};
}

PageReader ReaderOfReference(const KvGeometry& geometry, std::int64_t page_size) {
  const reference::ReferencePage layout{geometry, page_size};
  return {.quantized =
              [layout](const StoredRow& row, int dim) {
                return static_cast<std::uint8_t>(
                    row.page[row.is_value ? layout.ValueIndex(row.token, row.head, dim)
                                          : layout.KeyIndex(row.token, row.head, dim)]);
              },
          .scale =
              [layout](const StoredRow& row) {
                const std::int64_t elements =
                    layout.ValueIndex(layout.page_size, 0, 0);  // as many as bytes
                return FloatAt(row.page + elements +
                               (row.is_value ? layout.ValueScaleIndex(row.token, row.head)
                                             : layout.KeyScaleIndex(row.token, row.head)) *
                                   static_cast<std::int64_t>(sizeof(float)));
              }};
}

TEST(RowScaleTest, EveryInstructionSetWritesTheDocumentedValues) {
  for (DType dtype : kScaledDTypes) {
    for (const TargetBackend& target : CpuTargets()) {
      SCOPED_TRACE(target.name);
      ExpectDocumentedValues(*target.backend, dtype, ReaderOfCpu);
    }
  }
}

TEST(RowScaleTest, TheReferenceWritesTheDocumentedValues) {
  for (DType dtype : kScaledDTypes) {
    ExpectDocumentedValues(*reference::MakeReferenceBackend(), dtype, ReaderOfReference);
  }
}

TEST(RowScaleTest, TheReferenceReadsWhatItWrote) {
  const auto backend = reference::MakeReferenceBackend();
  for (DType dtype : kScaledDTypes) {
    const AttentionProblem problem({.kv_dtype = dtype, .kv_row_dtype = DType::kBFloat16});
    const PagedKv paged(*backend, problem, {.page_size = 16, .append_tokens = 7});
    const TaskOutput output = RunTask(*backend, paged.Task(problem));
    EXPECT_EQ(FindMismatch(MakeExpectation(problem), output), "");
  }
}

TEST(RowScaleTest, Float8GivesTheBitsOfTheSameRowsInBFloat16) {
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    // Queries of float32, so that bfloat16 does not take its dot product instruction.
    for (const ProblemSpec& spec : Variants({.kv_dtype = DType::kFloat8E4M3, .q_len = 13})) {
      ExpectBitsOfBFloat16Rows(*target.backend, spec);
    }
    ExpectBitsOfBFloat16Rows(*target.backend, {.head_dim_qk = 64,
                                               .head_dim_v = 128,
                                               .kv_dtype = DType::kFloat8E4M3,
                                               .q_len = 1,
                                               .kv_len = 1100,
                                               .magnitude = 3});
  }
}

}  // namespace
}  // namespace attention::testing
