#include "server/observe/log_sampler.h"

#include <gtest/gtest.h>

namespace attention::server {
namespace {

TEST(LogSamplerTest, TheFirstFewOfAKindAreLoggedAndTheRestCounted) {
  LogSampler sampler(/*max_per_period=*/2);
  EXPECT_TRUE(sampler.Admit("full"));
  EXPECT_TRUE(sampler.Admit("full"));
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(sampler.Admit("full"));
  const auto suppressed = sampler.EndPeriod();
  ASSERT_EQ(suppressed.size(), 1u);
  EXPECT_EQ(suppressed[0].kind, "full");
  EXPECT_EQ(suppressed[0].count, 1000);
}

TEST(LogSamplerTest, ManyOfOneKindHideNoneOfAnother) {
  LogSampler sampler(/*max_per_period=*/2);
  for (int i = 0; i < 1000; ++i) sampler.Admit("full");
  EXPECT_TRUE(sampler.Admit("broken"));
}

TEST(LogSamplerTest, EveryPeriodBeginsAnew) {
  LogSampler sampler(/*max_per_period=*/1);
  EXPECT_TRUE(sampler.Admit("full"));
  EXPECT_TRUE(sampler.EndPeriod().empty()) << "none was left out";
  EXPECT_TRUE(sampler.Admit("full"));
  EXPECT_FALSE(sampler.Admit("full"));
  EXPECT_EQ(sampler.EndPeriod().size(), 1u);
  EXPECT_TRUE(sampler.EndPeriod().empty()) << "told once";
}

}  // namespace
}  // namespace attention::server
