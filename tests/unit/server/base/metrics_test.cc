#include "server/base/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>

namespace attention::server {
namespace {

// The index, counted from 2^0, of the only bucket that holds something.
int OnlyBucket(const Histogram& histogram) {
  int found = -1;
  for (int i = 0; i < Histogram::kNumBuckets; ++i) {
    if (histogram.BucketCount(i) == 0) continue;
    EXPECT_EQ(found, -1);
    EXPECT_EQ(histogram.BucketCount(i), 1);
    found = i;
  }
  EXPECT_NE(found, -1);
  return found + Histogram::kFirstIndex;
}

TEST(HistogramTest, ABoundBelongsToTheBucketBelowIt) {
  // Value, and the i with 2^((i-1)/8) < value <= 2^(i/8).
  const std::pair<double, int> kCases[] = {{1.0, 0},
                                           {std::nextafter(1.0, 2.0), 1},
                                           {std::exp2(1.0 / 8), 1},
                                           {1.5, 5},
                                           {2.0, 8},
                                           {3e-3, -67},
                                           {std::exp2(-19.875), Histogram::kFirstIndex},
                                           {65536.0, 128}};
  for (const auto& [value, index] : kCases) {
    Histogram histogram;
    histogram.Observe(value);
    EXPECT_EQ(OnlyBucket(histogram), index) << value;
  }
}

TEST(HistogramTest, EveryValueLiesWithinItsBucket) {
  for (double value = 1.1e-6; value < 6e4; value *= 1.037) {
    Histogram histogram;
    histogram.Observe(value);
    const int index = OnlyBucket(histogram);
    EXPECT_GT(value, std::exp2((index - 1) / 8.0) * (1 - 1e-12));
    EXPECT_LE(value, std::exp2(index / 8.0) * (1 + 1e-12));
  }
}

TEST(HistogramTest, SmallAndWrongValuesCountAsZeroAndLargeOnesAsTheLargest) {
  Histogram histogram;
  for (const double value : {0.0, -1.0, 1e-9, Histogram::kZeroThreshold}) histogram.Observe(value);
  EXPECT_EQ(histogram.zero_count(), 4);
  histogram.Observe(1e12);
  EXPECT_EQ(histogram.BucketCount(Histogram::kNumBuckets - 1), 1);
  EXPECT_DOUBLE_EQ(histogram.sum(), 1e12 - 1.0 + 1e-9 + Histogram::kZeroThreshold);
}

}  // namespace
}  // namespace attention::server
