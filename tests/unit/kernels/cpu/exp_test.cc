// The exponential of softmax, on every instruction set: its error bound and its exact values.
#include <gmock/gmock.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "hwy/highway.h"
#include "kernels/cpu/attention_kernel.h"

namespace attention::cpu {
namespace {

std::vector<const KernelTable*> Tables() {
  std::vector<const KernelTable*> tables;
  for (std::int64_t target : {HWY_AVX3, HWY_AVX2, HWY_SSE4, HWY_EMU128, HWY_SCALAR}) {
    if (const KernelTable* table = ChooseKernels(target)) tables.push_back(table);
  }
  return tables;
}

float Exp2(const KernelTable& table, float x) {
  float y = 0;
  table.exp2(&x, &y, 1);
  return y;
}

double ErrorInUlp(float actual, double exact) {
  const auto nearest = static_cast<float>(exact);
  const double ulp = static_cast<double>(std::nextafter(nearest, 2 * nearest)) - nearest;
  return std::abs(actual - exact) / ulp;
}

TEST(Exp2Test, ErrsByAtMostOneAndAHalfUlp) {
  constexpr float kLowest = -125.9f;
  for (const KernelTable* table : Tables()) {
    std::vector<float> x, y;
    // Every 61st float from the least to the smallest magnitude.
    for (std::uint32_t bits = std::bit_cast<std::uint32_t>(kLowest); bits > 0x80000000u;
         bits -= std::min(bits - 0x80000000u, 61u * 16)) {
      x.push_back(std::bit_cast<float>(bits));
    }
    y.resize(x.size());
    table->exp2(x.data(), y.data(), x.size());
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      worst = std::max(worst, ErrorInUlp(y[i], std::exp2(static_cast<double>(x[i]))));
    }
    EXPECT_LE(worst, 1.5) << table->isa;
    ::testing::Test::RecordProperty(table->isa, std::to_string(worst));
  }
}

TEST(Exp2Test, IsExactlyOneAtZero) {
  for (const KernelTable* table : Tables()) {
    EXPECT_EQ(Exp2(*table, 0.0f), 1.0f);
    EXPECT_EQ(Exp2(*table, -0.0f), 1.0f);
  }
}

TEST(Exp2Test, IsExactlyZeroWhereResultsWouldBeSubnormal) {
  for (const KernelTable* table : Tables()) {
    for (float x : {-126.1f, -130.0f, -200.0f, -1e10f, -std::numeric_limits<float>::max(),
                    -std::numeric_limits<float>::infinity()}) {
      EXPECT_EQ(Exp2(*table, x), 0.0f) << table->isa << " " << x;
    }
  }
}

TEST(Exp2Test, ANaNStaysOne) {
  for (const KernelTable* table : Tables()) {
    EXPECT_TRUE(std::isnan(Exp2(*table, std::nanf("")))) << table->isa;
    EXPECT_TRUE(std::isnan(Exp2(*table, -std::nanf("")))) << table->isa;
  }
}

TEST(Exp2Test, SmallPositiveArgumentsWork) {
  for (const KernelTable* table : Tables()) {
    EXPECT_LE(ErrorInUlp(Exp2(*table, 1e-6f), std::exp2(static_cast<double>(1e-6f))), 1.1);
    EXPECT_LE(ErrorInUlp(Exp2(*table, 1.5f), std::exp2(1.5)), 1.1);
  }
}

}  // namespace
}  // namespace attention::cpu
