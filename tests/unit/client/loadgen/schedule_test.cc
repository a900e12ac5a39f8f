#include "client/loadgen/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace attention::loadgen {
namespace {

std::vector<double> Gaps(Schedule& schedule, int count) {
  std::vector<double> gaps;
  absl::Duration last = schedule.Next();
  for (int i = 0; i < count; ++i) {
    const absl::Duration next = schedule.Next();
    gaps.push_back(absl::ToDoubleSeconds(next - last));
    last = next;
  }
  return gaps;
}

TEST(ScheduleTest, ConstantArrivalsAreEvenAndDoNotDrift) {
  Schedule schedule(Arrivals::kConstant, 3, 1);
  EXPECT_EQ(schedule.Next(), absl::ZeroDuration());
  absl::Duration arrival;
  for (int i = 1; i <= 3000000; ++i) arrival = schedule.Next();
  EXPECT_EQ(arrival, absl::Seconds(1000000));
}

TEST(ScheduleTest, PoissonGapsHaveTheMeanAndSpreadOfTheExponential) {
  constexpr double kRate = 200;
  constexpr int kCount = 100000;
  Schedule schedule(Arrivals::kPoisson, kRate, 7);
  double sum = 0;
  double squares = 0;
  for (const double gap : Gaps(schedule, kCount)) {
    EXPECT_GE(gap, 0);
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / kCount;
  // The mean of n exponential gaps spreads by 1/sqrt(n) = 0.3 %; mean and deviation are equal.
  EXPECT_NEAR(mean * kRate, 1, 0.01);
  EXPECT_NEAR(std::sqrt(squares / kCount - mean * mean) * kRate, 1, 0.02);
}

TEST(ScheduleTest, PoissonGapsFollowTheExponentialDistribution) {
  constexpr int kCount = 20000;
  Schedule schedule(Arrivals::kPoisson, 1, 11);
  std::vector<double> gaps = Gaps(schedule, kCount);
  std::sort(gaps.begin(), gaps.end());
  double distance = 0;
  for (int i = 0; i < kCount; ++i) {
    const double expected = 1 - std::exp(-gaps[static_cast<std::size_t>(i)]);
    distance = std::max(distance, std::abs(expected - (i + 0.5) / kCount));
  }
  // Kolmogorov-Smirnov, 99.9 % bound: 1.95 / sqrt(n).
  EXPECT_LT(distance, 1.95 / std::sqrt(kCount));
}

TEST(ScheduleTest, PoissonCountsInAWindowVaryAsMuchAsTheirMean) {
  Schedule schedule(Arrivals::kPoisson, 10, 3);
  std::vector<double> counts(2000, 0);
  for (;;) {
    const double second = absl::ToDoubleSeconds(schedule.Next());
    if (second >= static_cast<double>(counts.size())) break;
    ++counts[static_cast<std::size_t>(second)];
  }
  double mean = 0;
  double variance = 0;
  for (const double count : counts) mean += count / static_cast<double>(counts.size());
  for (const double count : counts) {
    variance += (count - mean) * (count - mean) / static_cast<double>(counts.size());
  }
  EXPECT_NEAR(mean, 10, 0.3);
  EXPECT_NEAR(variance / mean, 1, 0.12);
}

TEST(ScheduleTest, SeedDecidesThePoissonSequence) {
  Schedule one(Arrivals::kPoisson, 5, 1);
  Schedule same(Arrivals::kPoisson, 5, 1);
  Schedule other(Arrivals::kPoisson, 5, 2);
  const absl::Duration first = one.Next();
  EXPECT_EQ(first, same.Next());
  EXPECT_NE(first, other.Next());
}

}  // namespace
}  // namespace attention::loadgen
