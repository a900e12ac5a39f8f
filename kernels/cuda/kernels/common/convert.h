// Elements of every type as floats, on the device.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/intrinsics/simt.h"

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

// No row holds the bytes of NaN, which give 480 here. Exponent and mantissa, put where float32 has
// them, are 2^-120 of the value, also those of subnormals.
ATTENTION_DEVICE float Float8ToFloat(std::uint8_t bits) {
  return FloatOf((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * 0x1p120f;
}

// A number to 448 as a byte, rounded to nearest, ties to even (FloatToFloat8E4M3 of
// kernels/api/dtype.h, to the bit). In integers on every device: an instruction for it came with
// compute capability 8.9, and appends have time.
ATTENTION_DEVICE std::uint8_t FloatToFloat8(float value) {
  const std::uint32_t bits = BitsOf(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t rebased = magnitude - ((127u - 7u) << 23);
  const std::uint32_t normal = (rebased + 0x7ffffu + (rebased >> 20 & 1u)) >> 20;
  // Below the smallest normal number multiples of 2^-9.
  const std::uint32_t small = BitsOf(FloatOf(magnitude) + 0x1p14f) - BitsOf(0x1p14f);
  return static_cast<std::uint8_t>((bits >> 24 & 0x80u) |
                                   (magnitude < BitsOf(0x1p-6f) ? small : normal));
}

// The second and the fourth byte of `bytes` as a pair of bfloat16, which holds every value exactly.
// The instruction that converts, of compute capability 8.9 and newer, gives float16, from which to
// bfloat16 it is three more.
ATTENTION_DEVICE std::uint32_t Float8PairToBFloat(std::uint32_t bytes) {
  constexpr std::uint32_t kTwoTo120 = 0x7b807b80u;
  return MultiplyBFloatPairs((bytes & 0x80008000u) | (bytes >> 4 & 0x07f007f0u), kTwoTo120);
}

// `data` is aligned to the element; types with row scales give the quantized value.
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
    case DType::kFloat8E4M3:
      return Float8ToFloat(static_cast<const std::uint8_t*>(data)[index]);
  }
  return 0.0f;
}

// Not of types with row scales.
ATTENTION_DEVICE void FloatToElement(void* data, DType dtype, std::int64_t index, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<std::uint16_t*>(data)[index] =
        dtype == DType::kFloat16 ? FloatToHalf(value) : FloatToBFloat(value);
  }
}

// True if one of the two 16-bit elements of a pair is infinite or NaN.
template <DType kType>
ATTENTION_DEVICE bool IsPairNonFinite(std::uint32_t pair) {
  constexpr std::uint32_t kExponent = kType == DType::kBFloat16 ? 0x7f80u : 0x7c00u;
  return (pair & kExponent) == kExponent || ((pair >> 16) & kExponent) == kExponent;
}

// As IsPairNonFinite, for several pairs at the price of three operations each: bits that tell for
// all pairs at once come together with |, and AreNonFinite reads them. An exponent of ones, and no
// other, carries into the sign when the least bit of an exponent is added.
template <DType kType>
ATTENTION_DEVICE std::uint32_t NonFiniteBits(std::uint32_t pair) {
  constexpr std::uint32_t kExponents = kType == DType::kBFloat16 ? 0x7f807f80u : 0x7c007c00u;
  constexpr std::uint32_t kLeast = kType == DType::kBFloat16 ? 0x00800080u : 0x04000400u;
  return (pair & kExponents) + kLeast;
}
ATTENTION_DEVICE bool AreNonFinite(std::uint32_t bits) { return (bits & 0x80008000u) != 0; }

// A pair of 16-bit elements with zeros for those that are not finite.
template <DType kType>
ATTENTION_DEVICE std::uint32_t ClearedPair(std::uint32_t pair) {
  if (IsPairNonFinite<kType>(pair & 0xffffu)) pair &= 0xffff0000u;
  if (IsPairNonFinite<kType>(pair & 0xffff0000u)) pair &= 0xffffu;
  return pair;
}

}  // namespace attention::cuda
