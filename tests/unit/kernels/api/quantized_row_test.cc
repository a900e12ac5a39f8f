// The scale of a row of quantized values: what it maps where, how far elements are from what is
// stored, and rows that have none.
#include "kernels/api/quantized_row.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>

namespace attention {
namespace {

constexpr DType kScaledDTypes[] = {DType::kInt8, DType::kFloat8E4M3};
constexpr float kInf = std::numeric_limits<float>::infinity();

float Stored(DType dtype, float x, const RowScale& scale) {
  return DequantizedElement(dtype, QuantizedElement(dtype, x, scale), scale.scale);
}

TEST(RowScaleTest, Int8MapsTheLargestMagnitudeTo127) {
  for (float max : {0x1p-99f, 0.3f, 1.0f, 127.0f, 6e4f, 0x1p127f}) {
    const RowScale scale = RowScale::Of(DType::kInt8, max);
    EXPECT_EQ(QuantizedElement(DType::kInt8, max, scale), 127) << max;
    EXPECT_EQ(QuantizedElement(DType::kInt8, -max, scale), 256 - 127) << max;
    EXPECT_FLOAT_EQ(127.0f * scale.scale, max);
  }
}

TEST(RowScaleTest, Int8ErrsByAtMostHalfAStep) {
  const float max = 3.7f;
  const RowScale scale = RowScale::Of(DType::kInt8, max);
  for (float x = -max; x <= max; x += 0.01f) {
    EXPECT_LE(std::abs(Stored(DType::kInt8, x, scale) - x), max / 254 * 1.0001f);
  }
}

// 448 is 1.75 * 2^8.
TEST(RowScaleTest, Float8TakesTheLeastPowerOfTwoThatKeepsTheLargestMagnitudeTo448) {
  const std::pair<float, float> cases[] = {
      {448.0f, 1.0f},
      {std::nextafter(448.0f, kInf), 2.0f},
      {224.0f, 0.5f},
      {225.0f, 1.0f},
      {1.75f, 0x1p-8f},
      {1.0f, 0x1p-8f},
      {1.8f, 0x1p-7f},
      {0x1p-100f, 0x1p-108f},
      {65504.0f, 0x1p8f},
      {0x1p127f, 0x1p119f},
      {std::numeric_limits<float>::max(), 0x1p120f},
  };
  for (const auto& [max, expected] : cases) {
    const RowScale scale = RowScale::Of(DType::kFloat8E4M3, max);
    EXPECT_EQ(scale.scale, expected) << max;
    EXPECT_EQ(scale.scale * scale.reciprocal, 1.0f) << max;
  }
}

TEST(RowScaleTest, Float8ErrsByAtMostASeventeenthOrAThousandthOfTheScale) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-24.0f, 0.0f), mantissa(-1.0f, 1.0f);
  for (float max : {1.0f, 0.013f, 447.0f, 3e8f}) {
    const RowScale scale = RowScale::Of(DType::kFloat8E4M3, max);
    EXPECT_LT(scale.scale / 1024, max / 0x1p17f);
    for (int i = 0; i < 20000; ++i) {
      const float x = max * mantissa(random) * std::exp2(exponent(random));
      EXPECT_LE(std::abs(Stored(DType::kFloat8E4M3, x, scale) - x),
                std::max(std::abs(x) / 17, scale.scale / 1024))
          << x << " beside " << max;
    }
  }
}

TEST(RowScaleTest, WhatFloat8HoldsStaysAsItIs) {
  for (float max : {448.0f, 0x1.4p-30f, 0x1p90f}) {
    const RowScale scale = RowScale::Of(DType::kFloat8E4M3, max);
    for (int byte = 0; byte < 0x7f; ++byte) {
      const float x =
          DequantizedElement(DType::kFloat8E4M3, static_cast<std::uint8_t>(byte), scale.scale);
      EXPECT_EQ(Stored(DType::kFloat8E4M3, x, scale), x);
      EXPECT_EQ(Stored(DType::kFloat8E4M3, -x, scale), -x);
    }
  }
}

TEST(RowScaleTest, RowsOfZerosAndOfNearlyNothingAreZeros) {
  for (DType dtype : kScaledDTypes) {
    for (float max : {0.0f, 0x1p-101f, std::numeric_limits<float>::denorm_min()}) {
      const RowScale scale = RowScale::Of(dtype, max);
      EXPECT_EQ(scale.scale, 0.0f);
      EXPECT_EQ(QuantizedElement(dtype, -max, scale), 0);
    }
  }
}

TEST(RowScaleTest, ARowThatIsNotFiniteReadsAsNaN) {
  for (DType dtype : kScaledDTypes) {
    for (float max : {kInf, std::numeric_limits<float>::quiet_NaN()}) {
      const RowScale scale = RowScale::Of(dtype, max);
      EXPECT_TRUE(std::isnan(Stored(dtype, 1.0f, scale)));
      EXPECT_TRUE(std::isnan(Stored(dtype, max, scale)));
    }
  }
}

}  // namespace
}  // namespace attention
