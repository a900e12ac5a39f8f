// Rows of keys and values into pages: converted, padded with zeros, for int8 and float8_e4m3
// quantised with a scale for each row (kernels/api/quantized_row.h, whose arithmetic it repeats to
// the bit).
//
// A block takes a run of tokens of one KV head, a warp one row at a time, a lane the elements
// lane, lane + 32, ... of it.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/kernels/common/convert.h"

namespace attention::cuda {

struct Append {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kSharedBytes = 0;
  static constexpr int kLaneElements = 256 / 32;  // of a row of 256
  using Arguments = AppendArguments;

  // Where a row comes from and goes to: a token's key or value.
  struct Row {
    const void* from;
    DType from_dtype;
    std::int64_t from_index;
    int dim;
    const PageLayout& layout;
    char* head;
    std::int64_t token;
    bool is_value;

    ATTENTION_DEVICE char* piece(int index) const {
      return head + (is_value ? layout.value_piece(token, index) : layout.key_piece(token, index));
    }
    // For types with row scales.
    ATTENTION_DEVICE float& scale() const {
      const std::int64_t offset = is_value ? layout.value_scale_offset : layout.key_scale_offset;
      return reinterpret_cast<float*>(head + offset)[token];
    }
  };

  struct Scale {
    float scale, reciprocal;
  };

  // The scale of a row whose largest magnitude is `max`.
  static ATTENTION_DEVICE Scale ScaleOf(DType dtype, float max, bool has_non_finite) {
    constexpr float kInt8Max = 127.0f;
    constexpr float kLeastMax = 0x1p-100f;
    if (has_non_finite) return {FloatOf(0x7fc00000u), 0.0f};
    if (max < kLeastMax) return {0.0f, 0.0f};
    if (dtype == DType::kInt8) return {max / kInt8Max, kInt8Max / max};
    const std::uint32_t exponent = ((BitsOf(max) + 0x1fffffu) >> 23) - 8;
    return {FloatOf(exponent << 23), FloatOf((254 - exponent) << 23)};
  }

  static ATTENTION_DEVICE void StoreQuantized(const Row& row, DType dtype, int lane,
                                              const float (&values)[kLaneElements]) {
    float max = 0.0f;
    std::uint32_t has_non_finite = 0;
    for (float value : values) {
      const std::uint32_t magnitude = BitsOf(value) & 0x7fffffffu;
      has_non_finite |= magnitude >= 0x7f800000u ? 1u : 0u;
      max = Max(max, FloatOf(magnitude));
    }
    for (int mask = 1; mask < 32; mask *= 2) {
      max = Max(max, ShuffleXor(max, mask));
      has_non_finite |= ShuffleXor(has_non_finite, mask);
    }
    const Scale scale = ScaleOf(dtype, max, has_non_finite != 0);
    if (lane == 0) row.scale() = scale.scale;
    const int padded = PadDim(row.dim);
    for (int i = 0; i < kLaneElements; ++i) {
      const int dim = lane + 32 * i;
      if (dim >= padded) break;
      const float scaled = values[i] * scale.reciprocal;
      int quantized = 0;
      if (scale.reciprocal != 0.0f) {
        quantized = dtype == DType::kInt8 ? RoundToInt(scaled) : FloatToFloat8(scaled);
      }
      row.piece(dim / kPieceBytes)[dim % kPieceBytes] = static_cast<char>(quantized);
    }
  }

  static ATTENTION_DEVICE void StoreRow(const Row& row, DType dtype, int lane) {
    float values[kLaneElements];
    for (int i = 0; i < kLaneElements; ++i) {
      const int dim = lane + 32 * i;
      values[i] =
          dim < row.dim ? ElementToFloat(row.from, row.from_dtype, row.from_index + dim) : 0.0f;
    }
    if (HasRowScales(dtype)) {
      StoreQuantized(row, dtype, lane, values);
      return;
    }
    const int padded = PadDim(row.dim);
    const int piece_elements = kPieceBytes / static_cast<int>(DTypeBytes(dtype));
    for (int i = 0; i < kLaneElements; ++i) {
      const int dim = lane + 32 * i;
      if (dim >= padded) break;
      FloatToElement(row.piece(dim / piece_elements), dtype, dim % piece_elements, values[i]);
    }
  }

  static ATTENTION_DEVICE void Run(const AppendArguments& arguments, char*) {
    const AppendItem& item = arguments.items[BlockIndex()];
    const DeviceAppend& append = arguments.appends[item.append];
    const PageLayout& layout = append.layout;
    const int lane = ThreadIndex() % 32;
    for (std::int64_t i = item.token_begin + ThreadIndex() / 32; i < item.token_end;
         i += kThreads / 32) {
      const std::int64_t position = append.position + i;
      char* head = append.pages[position / layout.page_size] + item.kv_head * layout.head_bytes;
      const std::int64_t token = position % layout.page_size;
      const std::int64_t source = i * append.num_kv_heads + item.kv_head;
      StoreRow({append.k, append.k_dtype, source * append.head_dim_qk, append.head_dim_qk, layout,
                head, token, /*is_value=*/false},
               append.dtype, lane);
      StoreRow({append.v, append.v_dtype, source * append.head_dim_v, append.head_dim_v, layout,
                head, token, /*is_value=*/true},
               append.dtype, lane);
    }
  }
};

}  // namespace attention::cuda
