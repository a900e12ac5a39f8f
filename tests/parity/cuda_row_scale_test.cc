// Caches of types with row scales on the CUDA backend, its kernels executed on the host
// (tests/simt) or on a GPU: pages hold the documented bytes, and kernels read each as the value
// that it is.
#include <gmock/gmock.h>

#include <cstring>
#include <vector>

#include "kernels/cuda/contract/page_layout.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/problem_variants.h"
#include "tests/support/quantized_pages.h"

namespace attention::testing {
namespace {

PageReader ReaderOfCuda(const KvGeometry& geometry, std::int64_t page_size) {
  const cuda::PageLayout layout = cuda::MakePageLayout(geometry, page_size);
  return {.quantized =
              [layout](const StoredRow& row, int dim) {
                const char* head = row.page + row.head * layout.head_bytes;
                const int piece = dim / cuda::kPieceBytes;
                return static_cast<std::uint8_t>(
                    head[(row.is_value ? layout.value_piece(row.token, piece)
                                       : layout.key_piece(row.token, piece)) +
                         dim % cuda::kPieceBytes]);
              },
          .scale =
              [layout](const StoredRow& row) {
                const char* scales =
                    row.page + row.head * layout.head_bytes +
                    (row.is_value ? layout.value_scale_offset : layout.key_scale_offset);
                float scale;
                std::memcpy(&scale, scales + row.token * sizeof(float), sizeof(scale));
                return scale;
              }};
}

TEST(CudaRowScaleTest, PagesHoldTheDocumentedValues) {
  for (DType dtype : {DType::kInt8, DType::kFloat8E4M3}) {
    ExpectDocumentedValues(Cuda(), dtype, ReaderOfCuda);
  }
}

// A value of all bytes but those of NaN, under the only key: its weight is 1, and its scale, too,
// as 448 is among them.
TEST(CudaRowScaleTest, EveryValueReachesTheOutputOfEveryKernel) {
  std::vector<float> value;
  for (int byte = 0; byte < 256; ++byte) {
    if (byte % 128 != 127) value.push_back(Float8E4M3ToFloat(static_cast<std::uint8_t>(byte)));
  }
  const auto dim = static_cast<int>(value.size());
  const float k = 1;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (std::int64_t q_len : {1, 20}) {
      const std::vector<char> q(q_len * DTypeBytes(dtype));
      AttentionTask task;
      task.params = {.num_q_heads = 1, .num_kv_heads = 1, .head_dim_qk = 1, .head_dim_v = dim};
      task.params.dtype = dtype;
      task.params.kv_dtype = DType::kFloat8E4M3;
      task.q_len = q_len;
      task.kv_len = 1;
      task.q = DenseRows(static_cast<const void*>(q.data()), dtype, 1, 1);
      task.k = DenseRows(static_cast<const void*>(&k), DType::kFloat32, 1, 1);
      task.v = DenseRows(static_cast<const void*>(value.data()), DType::kFloat32, 1, dim);
      SCOPED_TRACE(Cuda().KernelName(task));
      const TaskOutput output = RunTask(Cuda(), task);
      for (std::int64_t i = 0; i < q_len * dim; ++i) ASSERT_EQ(output.o(i), value[i % dim]) << i;
    }
  }
}

TEST(CudaRowScaleTest, Float8GivesTheBitsOfTheSameRowsInBFloat16) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    for (const ProblemSpec& spec :
         Variants({.dtype = dtype, .kv_dtype = DType::kFloat8E4M3, .q_len = 11})) {
      ExpectBitsOfBFloat16Rows(Cuda(), spec);
    }
    for (int dim : {64, 128, 256}) {
      for (std::int64_t q_len : {1, 40}) {
        ExpectBitsOfBFloat16Rows(Cuda(), {.head_dim_qk = dim,
                                          .head_dim_v = dim,
                                          .dtype = dtype,
                                          .kv_dtype = DType::kFloat8E4M3,
                                          .q_len = q_len,
                                          .kv_len = 300,
                                          .magnitude = 3});
      }
    }
  }
}

}  // namespace
}  // namespace attention::testing
