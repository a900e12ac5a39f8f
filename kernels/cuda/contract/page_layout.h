// How a page of the CUDA backend holds its tokens: head by head, the rows of one head's keys one
// after the other, then its values, then for int8 and float8_e4m3 the float32 scales of both
// (kernels/api/quantized_row.h). So what one block reads of a page is one dense piece: for
// bulk copies, and long runs for 16-byte ones.
//
//   page:  head 0 | head 1 | ...
//   head:  keys [page_size][dims padded] | values [page_size][channels padded]
//          | key scales [page_size] | value scales [page_size]
//
// Rows are padded to kPadElements with zeros, one step of the matrix instruction, which makes every
// row a multiple of 16 bytes in every type.
//
// Rows of elements of one or two bytes that fill lines of 128 bytes (64, 128, 192 or 256 elements
// of two) are swizzled: eight tokens lie together, line by line, and the 16-byte pieces of a line
// are permuted by the token,
//
//   [page_size / 8][lines of a row][8 tokens][8 pieces, piece i of token t at i ^ t]
//
// which is how wgmma reads both keys and values (sm90/operand.h), and where the eight rows that an
// instruction reads of a piece lie in different banks. So any 8 n tokens are one bulk copy into
// shared memory, ready to multiply.
#pragma once

#include <cstdint>

#include "kernels/api/paged_kv_view.h"
#include "kernels/cuda/contract/portable.h"

namespace attention::cuda {

inline constexpr int kPadElements = 16;

ATTENTION_HOST_DEVICE constexpr int PadDim(int dim) {
  return (dim + kPadElements - 1) / kPadElements * kPadElements;
}

inline constexpr int kPieceBytes = 16;
inline constexpr int kLineBytes = 128;
inline constexpr int kSwizzleTokens = 8;
inline constexpr int kSwizzleBytes = kSwizzleTokens * kLineBytes;  // a line of 8 tokens

// The offset of 16 bytes of a token's row, swizzled.
template <typename Token>
ATTENTION_HOST_DEVICE constexpr Token SwizzledPieceOffset(int row_bytes, Token token, int piece) {
  const auto row = static_cast<int>(token & (kSwizzleTokens - 1));
  constexpr int kLinePieces = kLineBytes / kPieceBytes;
  return (token - row) * row_bytes + piece / kLinePieces * kSwizzleBytes + row * kLineBytes +
         (piece % kLinePieces ^ row) * kPieceBytes;
}

struct PageLayout {
  int page_size = 0;  // tokens
  int key_row_bytes = 0;
  int value_row_bytes = 0;
  bool has_swizzled_keys = false;
  bool has_swizzled_values = false;
  std::int64_t value_offset = 0;  // from the start of a head, as the next two
  std::int64_t key_scale_offset = 0;
  std::int64_t value_scale_offset = 0;
  std::int64_t head_bytes = 0;
  std::int64_t page_bytes = 0;

  // From the start of a head, the offset of 16 bytes of a token's key or value.
  ATTENTION_HOST_DEVICE std::int64_t key_piece(std::int64_t token, int piece) const {
    return has_swizzled_keys ? SwizzledPieceOffset(key_row_bytes, token, piece)
                             : token * key_row_bytes + piece * kPieceBytes;
  }
  ATTENTION_HOST_DEVICE std::int64_t value_piece(std::int64_t token, int piece) const {
    return value_offset + (has_swizzled_values ? SwizzledPieceOffset(value_row_bytes, token, piece)
                                               : token * value_row_bytes + piece * kPieceBytes);
  }
};

inline PageLayout MakePageLayout(const KvGeometry& geometry, std::int64_t page_size) {
  const auto element = static_cast<int>(DTypeBytes(geometry.dtype));
  PageLayout layout;
  layout.page_size = static_cast<int>(page_size);
  layout.key_row_bytes = PadDim(geometry.head_dim_qk) * element;
  layout.value_row_bytes = PadDim(geometry.head_dim_v) * element;
  layout.has_swizzled_keys = element <= 2 && layout.key_row_bytes % kLineBytes == 0;
  layout.has_swizzled_values = element <= 2 && layout.value_row_bytes % kLineBytes == 0;
  layout.value_offset = page_size * layout.key_row_bytes;
  layout.key_scale_offset = layout.value_offset + page_size * layout.value_row_bytes;
  const std::int64_t scales =
      HasRowScales(geometry.dtype) ? page_size * static_cast<std::int64_t>(sizeof(float)) : 0;
  layout.value_scale_offset = layout.key_scale_offset + scales;
  layout.head_bytes = layout.value_scale_offset + scales;
  layout.page_bytes = layout.head_bytes * geometry.num_kv_heads;
  return layout;
}

}  // namespace attention::cuda
