// Rows as the operand of products (projection_types.h). A block takes one row.
//
// bfloat16 has float32's exponents, so three truncations leave nothing: each takes the highest 8
// bits of what is left. float16 has not: a row is first multiplied by the power of two that brings
// its largest element to 2^14 and more. Three roundings to 11 bits then leave nothing either, but
// of elements so small that float16's last place, 2^-24, is too coarse: at most half of that, 2^-39
// of the largest element. An element that is not finite goes to the first part whole.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/portable.h"
#include "kernels/cuda/contract/projection_types.h"
#include "kernels/cuda/kernels/common/convert.h"

namespace attention::cuda {

struct SplitRows {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kSharedBytes = kThreads / 32 * static_cast<int>(sizeof(float));
  using Arguments = SplitArguments;

  static ATTENTION_DEVICE bool IsFinite(float value) {
    return (BitsOf(value) & 0x7f800000u) != 0x7f800000u;
  }

  // The largest magnitude of the row's finite elements.
  static ATTENTION_DEVICE float LargestOf(const DeviceSplit& split, std::int64_t row,
                                          float* shared) {
    float largest = 0.0f;
    for (std::int64_t i = ThreadIndex(); i < split.in_features; i += kThreads) {
      const float value = ElementToFloat(split.x, split.x_dtype, row * split.in_features + i);
      if (IsFinite(value)) largest = Max(largest, FloatOf(BitsOf(value) & 0x7fffffffu));
    }
    for (int mask = 1; mask < 32; mask *= 2) largest = Max(largest, ShuffleXor(largest, mask));
    if (LaneIndex() == 0) shared[ThreadIndex() / 32] = largest;
    SyncThreads();
    for (int warp = 0; warp < kThreads / 32; ++warp) largest = Max(largest, shared[warp]);
    return largest;
  }

  // The exponent of the power of two by which the row is multiplied.
  static ATTENTION_DEVICE int ScaleOf(float largest) {
    constexpr int kWanted = 14;
    constexpr int kMost = 126;  // both powers are normal numbers then
    const int exponent = static_cast<int>(BitsOf(largest) >> 23) - 127;
    return Max(-kMost, Min(kMost, kWanted - exponent));
  }
  static ATTENTION_DEVICE float PowerOfTwo(int exponent) {
    return FloatOf(static_cast<std::uint32_t>(exponent + 127) << 23);
  }

  // The next part of `value`, as a float.
  static ATTENTION_DEVICE float NextPart(float value, DType dtype) {
    if (dtype == DType::kBFloat16) return FloatOf(BitsOf(value) & 0xffff0000u);
    return HalfToFloat(FloatToHalf(value));
  }

  static ATTENTION_DEVICE void Run(const SplitArguments& arguments, char* shared) {
    const RowItem& item = arguments.items[BlockIndex()];
    const DeviceSplit& split = arguments.splits[item.index];
    const bool is_scaled = split.dtype == DType::kFloat16 && split.num_parts > 1;
    int exponent = 0;
    if (is_scaled) {
      exponent = ScaleOf(LargestOf(split, item.row, reinterpret_cast<float*>(shared)));
    }
    if (ThreadIndex() == 0) split.unscale[item.row] = PowerOfTwo(-exponent);
    const float scale = PowerOfTwo(exponent);
    const std::int64_t part_stride = split.num_rows * split.padded_in;
    for (std::int64_t i = ThreadIndex(); i < split.padded_in; i += kThreads) {
      float left = 0.0f;
      if (i < split.in_features) {
        left = ElementToFloat(split.x, split.x_dtype, item.row * split.in_features + i) * scale;
      }
      const bool is_whole = split.num_parts == 1 || !IsFinite(left);
      for (int part = 0; part < split.num_parts; ++part) {
        const float value = is_whole ? (part == 0 ? left : 0.0f) : NextPart(left, split.dtype);
        FloatToElement(split.operand, split.dtype,
                       part * part_stride + item.row * split.padded_in + i, value);
        left = left - value;
      }
    }
  }
};

}  // namespace attention::cuda
