// Element types of tensors and the exact conversions between them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace attention {

enum class DType : std::uint8_t {
  kFloat32,
  kFloat16,   // IEEE 754 binary16
  kBFloat16,  // the upper half of a binary32
  // For caches only: rows of 8-bit values with a scale each (quantized_row.h).
  kInt8,
  kFloat8E4M3,  // OCP FP8 E4M3: 4 bits of exponent, 3 of mantissa, no infinities
};

// True if a row of the type has a scale of its own, and is more than its elements.
constexpr bool HasRowScales(DType dtype) {
  return dtype == DType::kInt8 || dtype == DType::kFloat8E4M3;
}

// Bytes of one element.
constexpr std::size_t DTypeBytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : HasRowScales(dtype) ? 1 : 2;
}

constexpr std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt8:
      return "int8";
    case DType::kFloat8E4M3:
      return "float8_e4m3";
  }
  return "unknown";
}

inline float BFloat16ToFloat(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
inline std::uint16_t FloatToBFloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// On bit patterns: the compiler's own _Float16 is missing from clang 14 on most of x86.
inline float Float16ToFloat(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = bits >> 10 & 31u;
  const std::uint32_t fraction = bits & 1023u;
  if (exponent == 0) {  // zero, or a multiple of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

// Rounds to nearest, ties to even; overflows to infinity; a NaN stays a (quiet) NaN.
inline std::uint16_t FloatToFloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<std::uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 1023u));
  }
  // From halfway between the largest finite value, 65504, and the next.
  if (magnitude >= std::bit_cast<std::uint32_t>(65520.0f)) {
    return static_cast<std::uint16_t>(sign | 0x7c00u);
  }
  if (magnitude < std::bit_cast<std::uint32_t>(0x1p-14f)) {
    // A multiple of 2^-24, which is the last place of a float32 of 0.5 to 1: the addition rounds.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t rebased = magnitude - ((127u - 15u) << 23);
  return static_cast<std::uint16_t>(sign | (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13);
}

inline constexpr float kFloat8Max = 448.0f;

inline float Float8E4M3ToFloat(std::uint8_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24;
  const std::uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) {  // zero, or a multiple of 2^-9
    return std::bit_cast<float>(
        sign | std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-9f));
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + ((127u - 7u) << 23)));
}

// Rounds to nearest, ties to even; saturates at 448, infinities too; a NaN stays one.
inline std::uint8_t FloatToFloat8E4M3(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 24 & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (magnitude >= std::bit_cast<std::uint32_t>(kFloat8Max)) {
    return static_cast<std::uint8_t>(sign | 0x7eu);
  }
  if (magnitude < std::bit_cast<std::uint32_t>(0x1p-6f)) {
    // A multiple of 2^-9, which is the last place of a float32 of 2^14 to 2^15: the addition
    // rounds.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<std::uint8_t>(
        sign | (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0x1p14f)));
  }
  const std::uint32_t rebased = magnitude - ((127u - 7u) << 23);
  return static_cast<std::uint8_t>(sign | (rebased + 0x7ffffu + (rebased >> 20 & 1u)) >> 20);
}

// Reads and writes one element, not of a type with row scales, at `index` of a possibly unaligned
// dense array.
inline float LoadElement(const void* data, DType dtype, std::int64_t index) {
  const auto* bytes = static_cast<const std::uint8_t*>(data) + index * DTypeBytes(dtype);
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return dtype == DType::kFloat16 ? Float16ToFloat(bits) : BFloat16ToFloat(bits);
}

inline void StoreElement(void* data, DType dtype, std::int64_t index, float value) {
  auto* bytes = static_cast<std::uint8_t*>(data) + index * DTypeBytes(dtype);
  if (dtype == DType::kFloat32) {
    std::memcpy(bytes, &value, sizeof(value));
    return;
  }
  const std::uint16_t bits =
      dtype == DType::kFloat16 ? FloatToFloat16(value) : FloatToBFloat16(value);
  std::memcpy(bytes, &bits, sizeof(bits));
}

}  // namespace attention
