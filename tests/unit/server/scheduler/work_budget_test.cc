#include "server/scheduler/work_budget.h"

#include <gmock/gmock.h>

#include "server/base/error_reason.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);

TenantLimitsSet Rates(double of_a, double of_others) {
  TenantLimitsSet set;
  set.listed["a"].work_rate = of_a;
  set.others.work_rate = of_others;
  return set;
}

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

TEST(WorkBucketTest, FillsWithTheTimeUpToASecondsWorth) {
  struct Case {
    double seconds;
    double rate;
    absl::Duration elapsed;
    double filled;
  };
  const Case kCases[] = {
      {0, 0.5, absl::Seconds(1), 0.5},        {0, 0.5, absl::Seconds(9), 0.5},
      {-2, 0.5, absl::Seconds(1), -1.5},      {-2, 0.5, absl::Seconds(4), 0},
      {0.1, 2, absl::Milliseconds(100), 0.3}, {1, 2, -absl::Seconds(1), 1},
  };
  for (const Case& c : kCases) {
    WorkBucket bucket{c.seconds, kStart};
    bucket.Fill(c.rate, kStart + c.elapsed);
    EXPECT_DOUBLE_EQ(bucket.seconds, c.filled) << c.seconds << " " << c.rate;
  }
}

TEST(WorkBudgetTest, WhoHasNoRateIsNeitherBoundNorRemembered) {
  TenantLimitsTable limits;
  WorkBudget budget(limits);
  budget.Spend("a", absl::Hours(1), kStart);
  EXPECT_TRUE(budget.Check("a", kStart).ok());
  EXPECT_EQ(budget.num_buckets(), 0u);
}

TEST(WorkBudgetTest, ATenantInDebtWaitsUntilItIsPaid) {
  TenantLimitsTable limits(Rates(0.5, kNoLimit));
  WorkBudget budget(limits);
  ASSERT_TRUE(budget.Check("a", kStart).ok());
  budget.Spend("a", absl::Seconds(2), kStart);  // of half a second that it had
  const absl::Status refused = budget.Check("a", kStart);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(GetErrorDetail(refused)->reason, "QUOTA_EXCEEDED");
  EXPECT_EQ(GetErrorDetail(refused)->retry_delay, absl::Seconds(3));
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("tenant 'a' is 3s ahead of its limit work-rate (0.5 seconds of computing"));
  EXPECT_FALSE(budget.Check("a", kStart + absl::Milliseconds(2999)).ok());
  EXPECT_TRUE(budget.Check("a", kStart + absl::Seconds(3)).ok());
  EXPECT_TRUE(budget.Check("b", kStart).ok()) << "another tenant";
  EXPECT_EQ(limits.refusals()["a"][static_cast<int>(TenantLimit::kWorkRate)], 2);
}

TEST(WorkBudgetTest, OverTimeATenantGetsItsRate) {
  TenantLimitsTable limits(Rates(0.25, kNoLimit));
  WorkBudget budget(limits);
  absl::Duration done;
  for (absl::Time now = kStart; now < kStart + absl::Seconds(100); now += absl::Milliseconds(10)) {
    if (!budget.Check("a", now).ok()) continue;
    budget.Spend("a", absl::Milliseconds(40), now);
    done += absl::Milliseconds(40);
  }
  EXPECT_NEAR(absl::ToDoubleSeconds(done), 25, 0.5);
}

TEST(WorkBudgetTest, ARateThatChangesCountsAtOnce) {
  TenantLimitsTable limits(Rates(0.5, kNoLimit));
  WorkBudget budget(limits);
  budget.Spend("a", absl::Seconds(10), kStart);
  ASSERT_FALSE(budget.Check("a", kStart).ok());
  limits.Replace(Rates(kNoLimit, kNoLimit));
  EXPECT_TRUE(budget.Check("a", kStart).ok());
}

// A caller who invents a name for each call must not fill the memory.
TEST(WorkBudgetTest, NamesHaveABoundedNumberOfBuckets) {
  TenantLimitsTable limits(Rates(1, 0.001));
  WorkBudget budget(limits);
  for (int i = 0; i < 100'000; ++i) {
    const std::string name = "invented" + std::to_string(i);
    if (budget.Check(name, kStart).ok()) budget.Spend(name, absl::Seconds(1), kStart);
  }
  EXPECT_LE(budget.num_buckets(), WorkBudget::kMaxUnlisted + 2);
  EXPECT_FALSE(budget.Check("one more", kStart).ok()) << "it shares the bucket of the others";
  EXPECT_TRUE(budget.Check("a", kStart).ok()) << "who is listed has its own";
}

}  // namespace
}  // namespace attention::server
