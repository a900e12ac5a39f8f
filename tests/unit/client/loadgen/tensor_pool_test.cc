#include "client/loadgen/tensor_pool.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace attention::loadgen {
namespace {

TEST(TensorPoolTest, ElementsHaveMeanZeroVarianceOneAndTheStatedBound) {
  const TensorPool pool(DType::kFloat32, 1, 3);
  double sum = 0;
  double squares = 0;
  for (std::int64_t i = 0; i < TensorPool::kPeriod; ++i) {
    const double value = LoadElement(pool.At(0), DType::kFloat32, i);
    ASSERT_LE(std::abs(value), TensorPool::kMaxMagnitude + 1e-6);
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / TensorPool::kPeriod, 0, 0.002);
  EXPECT_NEAR(squares / TensorPool::kPeriod, 1, 0.002);
}

TEST(TensorPoolTest, AWindowThatCrossesTheEndIsContiguous) {
  const TensorPool pool(DType::kBFloat16, 100, 3);
  const client::TensorView view = pool.View(TensorPool::kPeriod - 10, {10, 10});
  EXPECT_EQ(view.dtype, client::DType::kBFloat16);
  EXPECT_EQ(view.num_bytes(), 200u);
  const std::vector<std::uint8_t> gathered = pool.Gather(TensorPool::kPeriod - 10, 100);
  EXPECT_EQ(std::memcmp(gathered.data(), view.data, 200), 0);
  EXPECT_EQ(LoadElement(view.data, DType::kBFloat16, 10),
            LoadElement(pool.At(0), DType::kBFloat16, 0));
}

TEST(TensorPoolTest, OffsetsWrapSoThatSessionsMayGrowWithoutEnd) {
  const TensorPool pool(DType::kFloat32, 8, 3);
  EXPECT_EQ(pool.At(5), pool.At(5 + 3 * TensorPool::kPeriod));
}

TEST(TensorPoolTest, ATensorLargerThanThePeriodRepeatsIt) {
  const TensorPool pool(DType::kFloat16, 2 * TensorPool::kPeriod, 3);
  const void* data = pool.At(TensorPool::kPeriod - 1);
  EXPECT_EQ(LoadElement(data, DType::kFloat16, 4),
            LoadElement(data, DType::kFloat16, 4 + TensorPool::kPeriod));
}

TEST(TensorPoolTest, SeedDecidesTheData) {
  const TensorPool one(DType::kFloat32, 1, 1);
  const TensorPool other(DType::kFloat32, 1, 2);
  EXPECT_NE(LoadElement(one.At(0), DType::kFloat32, 0),
            LoadElement(other.At(0), DType::kFloat32, 0));
}

}  // namespace
}  // namespace attention::loadgen
