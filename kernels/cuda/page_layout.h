// How a page of the CUDA backend holds its tokens: head by head, the rows of one head's keys one
// after the other, then its values, then for int8 the float32 scales of both
// (kernels/api/quantized_row.h). So what one block reads of a page is one dense piece: the box of
// a bulk copy, and long runs for 16-byte copies.
//
//   page:  head 0 | head 1 | ...
//   head:  keys [page_size][dims padded] | values [page_size][channels padded]
//          | key scales [page_size] | value scales [page_size]
//
// Rows are padded to kPadElements with zeros, one step of the matrix instruction, which makes every
// row a multiple of 16 bytes in every type.
#pragma once

#include <cstdint>

#include "kernels/api/paged_kv_view.h"
#include "kernels/cuda/base/portable.h"

namespace attention::cuda {

inline constexpr int kPadElements = 16;

ATTENTION_HOST_DEVICE constexpr int PadDim(int dim) {
  return (dim + kPadElements - 1) / kPadElements * kPadElements;
}

struct PageLayout {
  int page_size = 0;  // tokens
  int key_row_bytes = 0;
  int value_row_bytes = 0;
  std::int64_t value_offset = 0;  // from the start of a head, as the next two
  std::int64_t key_scale_offset = 0;
  std::int64_t value_scale_offset = 0;
  std::int64_t head_bytes = 0;
  std::int64_t page_bytes = 0;
};

inline PageLayout MakePageLayout(const KvGeometry& geometry, std::int64_t page_size) {
  const auto element = static_cast<int>(DTypeBytes(geometry.dtype));
  PageLayout layout;
  layout.page_size = static_cast<int>(page_size);
  layout.key_row_bytes = PadDim(geometry.head_dim_qk) * element;
  layout.value_row_bytes = PadDim(geometry.head_dim_v) * element;
  layout.value_offset = page_size * layout.key_row_bytes;
  layout.key_scale_offset = layout.value_offset + page_size * layout.value_row_bytes;
  const std::int64_t scales =
      geometry.dtype == DType::kInt8 ? page_size * static_cast<std::int64_t>(sizeof(float)) : 0;
  layout.value_scale_offset = layout.key_scale_offset + scales;
  layout.head_bytes = layout.value_scale_offset + scales;
  layout.page_bytes = layout.head_bytes * geometry.num_kv_heads;
  return layout;
}

}  // namespace attention::cuda
