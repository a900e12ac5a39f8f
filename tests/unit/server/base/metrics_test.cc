#include "server/base/metrics.h"

#include <gtest/gtest.h>

namespace attention::server {
namespace {

TEST(HistogramTest, ValuesFallIntoTheFirstBucketThatHoldsThem) {
  Histogram histogram(1.0);
  histogram.Observe(0.5);
  histogram.Observe(1.0);
  histogram.Observe(1.5);
  histogram.Observe(1e12);
  EXPECT_EQ(histogram.BucketCount(0), 2);
  EXPECT_EQ(histogram.BucketCount(1), 1);
  EXPECT_EQ(histogram.BucketCount(Histogram::kNumBuckets), 1);
  EXPECT_EQ(histogram.count(), 4);
  EXPECT_DOUBLE_EQ(histogram.sum(), 1e12 + 3.0);
}

}  // namespace
}  // namespace attention::server
