// How a cache of int8 or float8_e4m3 stores a row (one token of one KV head, of keys or of values):
// a quantized value of 8 bits for each element, and one float32 scale, x = scale * that value.
//
//   int8         integers to 127; scale = max|x| / 127. Each element errs by at most max|x| / 254.
//   float8_e4m3  floats to 448; scale is the least power of two with max|x| <= 448 scale, so that
//                scaling is exact and only the value is rounded. An element errs by at most |x| /
//                17, or scale / 1024 (less than max|x| / 2^17) where that is more.
//
// So int8 is nearer where the elements of a row are of one order, float8_e4m3 where a few exceed
// the others a hundred times, as channels of keys may. The scale is the row's own: appending a row
// never changes another, nothing saturates, and nobody has to calibrate anything beforehand, as a
// scale for a whole tensor would ask for. Since the scales of float8_e4m3 are powers of two, rows
// that the type holds exactly stay as they are, and attention gives what it would give over the
// same rows in bfloat16.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/api/dtype.h"

namespace attention {

inline constexpr float kInt8Max = 127.0f;

// Rows whose largest magnitude is below this are stored as zeros: a reciprocal would overflow.
inline constexpr float kLeastRowMax = 0x1p-100f;

struct RowScale {
  float scale;       // NaN for a row that is not finite: all of it reads as NaN
  float reciprocal;  // what elements are multiplied by before they are rounded; 0: they become 0

  // `max` is the largest magnitude of the row, or not finite if an element is not. `dtype` has row
  // scales.
  static RowScale Of(DType dtype, float max) {
    if (!std::isfinite(max)) return {NAN, 0.0f};
    if (max < kLeastRowMax) return {0.0f, 0.0f};
    if (dtype == DType::kInt8) return {max / kInt8Max, kInt8Max / max};
    // 448 is 1.75 * 2^8: the exponent of `max`, one more for a mantissa above 1.75, less 8.
    const std::uint32_t exponent = ((std::bit_cast<std::uint32_t>(max) + 0x1fffffu) >> 23) - 8;
    return {std::bit_cast<float>(exponent << 23), std::bit_cast<float>((254 - exponent) << 23)};
  }
};

// The quantized value of an element, rounded to nearest, ties to even.
inline std::uint8_t QuantizedElement(DType dtype, float x, const RowScale& scale) {
  if (scale.reciprocal == 0.0f) return 0;
  const float scaled = x * scale.reciprocal;
  if (dtype == DType::kFloat8E4M3) return FloatToFloat8E4M3(scaled);
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(std::nearbyint(scaled)));
}

// The element that a quantized value stands for.
inline float DequantizedElement(DType dtype, std::uint8_t quantized, float scale) {
  const float value = dtype == DType::kFloat8E4M3
                          ? Float8E4M3ToFloat(quantized)
                          : static_cast<float>(static_cast<std::int8_t>(quantized));
  return value * scale;
}

}  // namespace attention
