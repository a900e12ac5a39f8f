// The scale of a row of int8: what it maps where, and rows that have none.
#include "kernels/api/quantized_row.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

namespace attention {
namespace {

TEST(Int8ScaleTest, MapsTheLargestMagnitudeTo127) {
  for (float max : {0x1p-99f, 0.3f, 1.0f, 127.0f, 6e4f, 0x1p127f}) {
    const Int8Scale scale = Int8Scale::Of(max);
    EXPECT_EQ(std::nearbyint(max * scale.reciprocal), 127.0f) << max;
    EXPECT_EQ(std::nearbyint(-max * scale.reciprocal), -127.0f) << max;
    EXPECT_FLOAT_EQ(127.0f * scale.scale, max);
  }
}

TEST(Int8ScaleTest, ErrsByAtMostHalfAStep) {
  const float max = 3.7f;
  const Int8Scale scale = Int8Scale::Of(max);
  for (float x = -max; x <= max; x += 0.01f) {
    const float stored = std::nearbyint(x * scale.reciprocal) * scale.scale;
    EXPECT_LE(std::abs(stored - x), max / 254 * 1.0001f);
  }
}

TEST(Int8ScaleTest, RowsOfZerosAndOfNearlyNothingAreZeros) {
  for (float max : {0.0f, 0x1p-101f, std::numeric_limits<float>::denorm_min()}) {
    const Int8Scale scale = Int8Scale::Of(max);
    EXPECT_EQ(scale.scale, 0.0f);
    EXPECT_EQ(std::nearbyint(max * scale.reciprocal), 0.0f);
  }
}

TEST(Int8ScaleTest, ARowThatIsNotFiniteReadsAsNaN) {
  for (float max :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_TRUE(std::isnan(Int8Scale::Of(max).scale));
  }
}

}  // namespace
}  // namespace attention
