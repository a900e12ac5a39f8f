// Elements of every type as floats, on the device.
#pragma once

#include <cstdint>

#include "kernels/cuda/base/simt.h"

namespace attention::cuda {

ATTENTION_DEVICE float BFloatToFloat(std::uint16_t bits) {
  return FloatOf(static_cast<std::uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
ATTENTION_DEVICE std::uint16_t FloatToBFloat(float value) {
  const std::uint32_t bits = BitsOf(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// `data` is aligned to the element; int8 gives the integer.
ATTENTION_DEVICE float ElementToFloat(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[index];
    case DType::kFloat16:
      return HalfToFloat(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kBFloat16:
      return BFloatToFloat(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kInt8:
      return static_cast<float>(static_cast<const std::int8_t*>(data)[index]);
  }
  return 0.0f;
}

// Not of int8.
ATTENTION_DEVICE void FloatToElement(void* data, DType dtype, std::int64_t index, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<std::uint16_t*>(data)[index] =
        dtype == DType::kFloat16 ? FloatToHalf(value) : FloatToBFloat(value);
  }
}

// Whether one of the two 16-bit elements of a pair is infinite or NaN.
template <DType kType>
ATTENTION_DEVICE bool IsPairBroken(std::uint32_t pair) {
  constexpr std::uint32_t kExponent = kType == DType::kBFloat16 ? 0x7f80u : 0x7c00u;
  return (pair & kExponent) == kExponent || ((pair >> 16) & kExponent) == kExponent;
}

// A pair of 16-bit elements with zeros for those that are not finite.
template <DType kType>
ATTENTION_DEVICE std::uint32_t ClearedPair(std::uint32_t pair) {
  if (IsPairBroken<kType>(pair & 0xffffu)) pair &= 0xffff0000u;
  if (IsPairBroken<kType>(pair & 0xffff0000u)) pair &= 0xffffu;
  return pair;
}

}  // namespace attention::cuda
