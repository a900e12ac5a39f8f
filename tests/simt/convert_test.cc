// The device's conversions of float8_e4m3 are those of kernels/api/dtype.h, and what tells that
// several 16-bit elements are finite agrees with what tells it of one.
#include "kernels/cuda/kernels/common/convert.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

namespace attention::cuda {
namespace {

TEST(ConvertTest, EveryFloat8CodeIsItsValue) {
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const auto bits = static_cast<std::uint8_t>(byte);
    const float value = Float8E4M3ToFloat(bits);
    if (std::isnan(value)) continue;  // no row holds them
    ASSERT_EQ(BitsOf(Float8ToFloat(bits)), BitsOf(value)) << byte;
    // Beside every other byte, which must not show.
    for (std::uint32_t other = 0; other < 256; ++other) {
      const std::uint32_t low = Float8PairToBFloat(byte << 8 | other << 24 | other << 16 | other);
      const std::uint32_t high = Float8PairToBFloat(byte << 24 | other << 16 | other << 8 | other);
      ASSERT_EQ(low & 0xffffu, FloatToBFloat(value)) << byte;
      ASSERT_EQ(high >> 16, FloatToBFloat(value)) << byte;
    }
  }
}

TEST(ConvertTest, NumbersTo448AreRoundedToNearestEven) {
  std::mt19937 random(1);
  const auto expect = [](float value) {
    ASSERT_EQ(FloatToFloat8(value), FloatToFloat8E4M3(value)) << value;
    ASSERT_EQ(FloatToFloat8(-value), FloatToFloat8E4M3(-value)) << value;
  };
  for (int byte = 0; byte < 0x7e; ++byte) {
    const float low = Float8E4M3ToFloat(static_cast<std::uint8_t>(byte));
    const float high = Float8E4M3ToFloat(static_cast<std::uint8_t>(byte + 1));
    const float middle = (low + high) / 2;
    for (float value :
         {low, std::nextafter(middle, low), middle, std::nextafter(middle, high), high}) {
      expect(value);
    }
  }
  for (int i = 0; i < 100000; ++i) expect(FloatOf(random() % (BitsOf(448.0f) + 1)));
}

template <DType kType>
void ExpectNonFiniteBitsOfEveryElement() {
  const std::uint32_t finite = kType == DType::kBFloat16 ? 0xff7f7f7fu : 0xfbff7bffu;
  for (std::uint32_t element = 0; element < 0x10000; ++element) {
    for (const std::uint32_t pair :
         {element | (finite & 0xffff0000u), (finite & 0xffffu) | element << 16}) {
      ASSERT_EQ(AreNonFinite(NonFiniteBits<kType>(pair)), IsPairNonFinite<kType>(pair)) << pair;
      // Beside pairs of the greatest finite elements.
      ASSERT_EQ(AreNonFinite(NonFiniteBits<kType>(finite) | NonFiniteBits<kType>(pair)),
                IsPairNonFinite<kType>(pair))
          << pair;
    }
  }
}

TEST(ConvertTest, NonFiniteBitsTellOfEveryElementWhetherItIsFinite) {
  ExpectNonFiniteBitsOfEveryElement<DType::kBFloat16>();
  ExpectNonFiniteBitsOfEveryElement<DType::kFloat16>();
}

}  // namespace
}  // namespace attention::cuda
