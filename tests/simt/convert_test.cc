// The device's conversions of float8_e4m3 are those of kernels/api/dtype.h.
#include "kernels/cuda/base/convert.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

namespace attention::cuda {
namespace {

TEST(ConvertTest, EveryFloat8CodeIsItsValue) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    const auto bits = static_cast<std::uint8_t>(code);
    const float value = Float8E4M3ToFloat(bits);
    if (std::isnan(value)) continue;  // no row holds them
    ASSERT_EQ(BitsOf(Float8ToFloat(bits)), BitsOf(value)) << code;
    // Beside every other byte, which must not show.
    for (std::uint32_t other = 0; other < 256; ++other) {
      const std::uint32_t low = Float8PairToBFloat(code << 8 | other << 24 | other << 16 | other);
      const std::uint32_t high = Float8PairToBFloat(code << 24 | other << 16 | other << 8 | other);
      ASSERT_EQ(low & 0xffffu, FloatToBFloat(value)) << code;
      ASSERT_EQ(high >> 16, FloatToBFloat(value)) << code;
    }
  }
}

TEST(ConvertTest, NumbersTo448AreRoundedToNearestEven) {
  std::mt19937 random(1);
  const auto expect = [](float value) {
    ASSERT_EQ(FloatToFloat8(value), FloatToFloat8E4M3(value)) << value;
    ASSERT_EQ(FloatToFloat8(-value), FloatToFloat8E4M3(-value)) << value;
  };
  for (int code = 0; code < 0x7e; ++code) {
    const float low = Float8E4M3ToFloat(static_cast<std::uint8_t>(code));
    const float high = Float8E4M3ToFloat(static_cast<std::uint8_t>(code + 1));
    const float middle = (low + high) / 2;
    for (float value :
         {low, std::nextafter(middle, low), middle, std::nextafter(middle, high), high}) {
      expect(value);
    }
  }
  for (int i = 0; i < 100000; ++i) expect(FloatOf(random() % (BitsOf(448.0f) + 1)));
}

}  // namespace
}  // namespace attention::cuda
