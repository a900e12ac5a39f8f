#include "client/loadgen/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace attention::loadgen {
namespace {

constexpr double kPercents[] = {0, 1, 25, 50, 90, 99, 99.9, 99.99, 100};

// Rank ceil(n * percent / 100) of the sorted values.
std::int64_t ExactPercentile(const std::vector<std::int64_t>& sorted, double percent) {
  const double rank = std::ceil(static_cast<double>(sorted.size()) * percent / 100 - 1e-9);
  return sorted[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

std::vector<std::int64_t> RandomTimes(int count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::lognormal_distribution<double> times(13, 2);  // around 0.4 ms in ns, long tail
  std::vector<std::int64_t> values;
  for (int i = 0; i < count; ++i) values.push_back(static_cast<std::int64_t>(times(random)));
  return values;
}

TEST(HistogramTest, PercentilesAgreeWithSortingToOnePercent) {
  std::vector<std::int64_t> values = RandomTimes(50000, 1);
  Histogram histogram;
  for (const std::int64_t value : values) histogram.Add(value);
  std::sort(values.begin(), values.end());
  for (const double percent : kPercents) {
    const auto exact = static_cast<double>(ExactPercentile(values, percent));
    EXPECT_NEAR(static_cast<double>(histogram.Percentile(percent)), exact, exact * 0.005)
        << percent;
  }
  EXPECT_EQ(histogram.Percentile(100), values.back());
  EXPECT_EQ(histogram.max(), values.back());
  EXPECT_EQ(histogram.min(), values.front());
  EXPECT_EQ(histogram.count(), 50000);
}

TEST(HistogramTest, EveryMagnitudeIsWithinTheBound) {
  for (std::int64_t value = 1; value > 0 && value < std::numeric_limits<std::int64_t>::max() / 3;
       value = value * 3 / 2 + 1) {
    Histogram histogram;
    histogram.Add(value);
    histogram.Add(value);
    histogram.Add(std::numeric_limits<std::int64_t>::max());
    const auto reported = static_cast<double>(histogram.Percentile(50));
    EXPECT_NEAR(reported, static_cast<double>(value), static_cast<double>(value) / 200) << value;
  }
}

TEST(HistogramTest, SmallValuesAreExact) {
  Histogram histogram;
  for (std::int64_t value = 0; value < 256; ++value) histogram.Add(value);
  for (std::int64_t rank = 1; rank <= 256; ++rank) {
    EXPECT_EQ(histogram.Percentile(static_cast<double>(rank) / 2.56), rank - 1);
  }
}

TEST(HistogramTest, MergedEqualsOneThatSawEverything) {
  Histogram all, first, second;
  for (const std::int64_t value : RandomTimes(1000, 2)) all.Add(value), first.Add(value);
  for (const std::int64_t value : RandomTimes(500, 3)) all.Add(value), second.Add(value);
  first.Merge(second);
  first.Merge(Histogram());
  EXPECT_EQ(first.count(), all.count());
  EXPECT_EQ(first.min(), all.min());
  EXPECT_EQ(first.max(), all.max());
  EXPECT_NEAR(first.mean(), all.mean(), all.mean() * 1e-12);
  for (const double percent : kPercents) {
    EXPECT_EQ(first.Percentile(percent), all.Percentile(percent));
  }
}

TEST(HistogramTest, MergeIntoAnEmptyOneKeepsTheMinimum) {
  Histogram empty, other;
  other.Add(std::int64_t{7});
  empty.Merge(other);
  EXPECT_EQ(empty.min(), 7);
}

TEST(HistogramTest, EmptyIsAllZeroAndNegativeCountsAsZero) {
  Histogram histogram;
  EXPECT_EQ(histogram.Percentile(99), 0);
  EXPECT_EQ(histogram.mean(), 0);
  histogram.Add(std::int64_t{-5});
  EXPECT_EQ(histogram.count(), 1);
  EXPECT_EQ(histogram.max(), 0);
}

}  // namespace
}  // namespace attention::loadgen
