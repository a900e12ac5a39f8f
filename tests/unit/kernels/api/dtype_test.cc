// Conversions, checked exhaustively over the types of 16 and 8 bits.
#include "kernels/api/dtype.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <vector>

namespace attention {
namespace {

// Value of a binary16 from its definition.
double Float16Value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(DTypeTest, EveryFloat16WidensToItsValueAndBack) {
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double expected = Float16Value(bits);
    const float actual = Float16ToFloat(bits);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(actual) && std::isnan(Float16ToFloat(FloatToFloat16(actual))));
      continue;
    }
    ASSERT_EQ(actual, expected) << i;
    ASSERT_EQ(FloatToFloat16(actual), bits);
  }
}

TEST(DTypeTest, EveryBFloat16WidensToItsUpperHalfAndBack) {
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float value = BFloat16ToFloat(bits);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(value), static_cast<std::uint32_t>(i) << 16);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(value))));
    } else {
      ASSERT_EQ(FloatToBFloat16(value), bits);
    }
  }
}

// Between two neighbours: below the middle rounds down, above up, the middle to the even one.
template <typename Bits, typename Narrow, typename Widen>
void ExpectRoundsToNearestEven(Narrow narrow, Widen widen, int last_finite) {
  for (int i = 0; i < last_finite; ++i) {
    const auto low = static_cast<Bits>(i), high = static_cast<Bits>(i + 1);
    const float middle = static_cast<float>((static_cast<double>(widen(low)) + widen(high)) / 2);
    ASSERT_EQ(narrow(middle), i % 2 == 0 ? low : high) << i;
    ASSERT_EQ(narrow(std::nextafter(middle, 0.0f)), low) << i;
    ASSERT_EQ(narrow(std::nextafter(middle, std::numeric_limits<float>::infinity())), high) << i;
  }
}

TEST(DTypeTest, NarrowingRoundsToNearestTiesToEven) {
  ExpectRoundsToNearestEven<std::uint16_t>(FloatToFloat16, Float16ToFloat, 0x7bff);
  ExpectRoundsToNearestEven<std::uint16_t>(FloatToBFloat16, BFloat16ToFloat, 0x7f7e);
  ExpectRoundsToNearestEven<std::uint8_t>(FloatToFloat8E4M3, Float8E4M3ToFloat, 0x7e);
}

// From its definition: OCP 8-bit Floating Point Specification, revision 1.0, table 1.
double Float8E4M3Value(int bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  const double sign = (bits & 0x80) != 0 ? -1.0 : 1.0;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

TEST(DTypeTest, EveryFloat8WidensToItsValueAndBack) {
  for (int i = 0; i < 256; ++i) {
    const auto bits = static_cast<std::uint8_t>(i);
    const double expected = Float8E4M3Value(i);
    const float actual = Float8E4M3ToFloat(bits);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(actual));
    } else {
      ASSERT_EQ(actual, expected) << i;
      ASSERT_EQ(std::signbit(actual), i >= 0x80) << i;
    }
    ASSERT_EQ(FloatToFloat8E4M3(actual), bits);
  }
}

TEST(DTypeTest, Float8SaturatesAndANaNStaysOne) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (float large : {448.0f, 449.0f, 464.0f, 480.0f, 1e30f, infinity}) {
    EXPECT_EQ(FloatToFloat8E4M3(large), 0x7e);
    EXPECT_EQ(FloatToFloat8E4M3(-large), 0xfe);
  }
  EXPECT_EQ(FloatToFloat8E4M3(std::bit_cast<float>(0x7f800001u)), 0x7f);
  EXPECT_EQ(FloatToFloat8E4M3(std::bit_cast<float>(0xffc00000u)), 0xff);
  EXPECT_EQ(FloatToFloat8E4M3(-std::numeric_limits<float>::denorm_min()), 0x80);
}

TEST(DTypeTest, OverflowBecomesInfinityAndANaNStaysOne) {
  EXPECT_EQ(FloatToFloat16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToFloat16(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToBFloat16(std::numeric_limits<float>::max()), 0x7f80);
  // A NaN whose payload lies in the lower half only must not turn into infinity.
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(DTypeTest, ElementsAreReadAndWrittenAtUnalignedAddresses) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    std::vector<char> bytes(64, 0);
    for (int i = 0; i < 5; ++i) StoreElement(bytes.data() + 1, dtype, i, 1.5f * i);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(LoadElement(bytes.data() + 1, dtype, i), 1.5f * i);
    EXPECT_EQ(bytes[0], 0);
    EXPECT_EQ(bytes[1 + 5 * DTypeBytes(dtype)], 0);
  }
}

}  // namespace
}  // namespace attention
