#include "server/domain/tenant_limits.h"

#include <gmock/gmock.h>

#include <thread>
#include <vector>

#include "server/base/error_reason.h"
#include "server/domain/tenant_ledger.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;

TenantLimitsSet OneListed(std::int64_t sessions_of_others, std::int64_t sessions_of_listed) {
  TenantLimitsSet set;
  set.others.sessions = sessions_of_others;
  set.listed["listed"].sessions = sessions_of_listed;
  return set;
}

TEST(TenantLimitsTest, WhoIsNotListedHasTheLimitsOfOthers) {
  const TenantLimitsTable table(OneListed(3, 7));
  EXPECT_EQ(table.Of("listed").sessions, 7);
  EXPECT_EQ(table.Of("anybody").sessions, 3);
  EXPECT_EQ(table.Of("").sessions, 3);
}

TEST(TenantLimitsTest, AReplacedTableIsSeenAsAWhole) {
  TenantLimitsTable table(OneListed(3, 7));
  const int generation = table.generation();
  table.Replace(OneListed(4, 8));
  EXPECT_GT(table.generation(), generation);
  EXPECT_EQ(table.Of("listed").sessions, 8);
  EXPECT_EQ(table.Of("anybody").sessions, 4);
}

TEST(TenantLimitsTest, NobodyGetsAllOfACapacityUnlessToldSo) {
  const struct {
    std::int64_t capacity;
    std::int64_t part;
  } kCases[] = {{0, 0}, {1, 1}, {9, 9}, {10, 9}, {100, 90}, {109, 99}, {10000, 9000}};
  for (const auto& c : kCases) EXPECT_EQ(DefaultTenantPart(c.capacity), c.part) << c.capacity;
}

TEST(TenantLimitsTest, ARefusalNamesLimitUseBoundAndWhatToDo) {
  const absl::Status status =
      LimitReached(TenantLimit::kKvBytes, "a\"b", 90, 20, 100, absl::Seconds(2));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "tenant 'a\\\"b' holds 90 bytes of KV pages, and 20 more would exceed its limit "
            "kv-bytes (100): delete sessions, or ask the operator for more");
  const auto detail = GetErrorDetail(status);
  ASSERT_TRUE(detail);
  EXPECT_EQ(detail->reason, "QUOTA_EXCEEDED");
  EXPECT_EQ(detail->retry_delay, absl::Seconds(2));
  EXPECT_THAT(detail->metadata,
              ElementsAre(Pair("bound", "100"), Pair("limit", "kv-bytes"), Pair("use", "90")));
}

// Names cost a caller nothing.
TEST(TenantLimitsTest, RefusalsAreCountedUnderABoundedNumberOfNames) {
  TenantLimitsTable table(OneListed(3, 7));
  for (int i = 0; i < 10'000; ++i) {
    table.CountRefusal(TenantLimit::kStreams, "invented" + std::to_string(i));
  }
  table.CountRefusal(TenantLimit::kSessions, "listed");
  auto refusals = table.refusals();
  EXPECT_THAT(refusals, SizeIs(66));  // 64 names, the listed one, all others
  std::int64_t sum = 0;
  for (const auto& [tenant, counts] : refusals) {
    sum += counts[static_cast<int>(TenantLimit::kStreams)];
  }
  EXPECT_EQ(sum, 10'000);
  EXPECT_EQ(refusals["listed"][static_cast<int>(TenantLimit::kSessions)], 1);
}

class TenantLedgerTest : public ::testing::Test {
 protected:
  TenantLimitsTable limits_{OneListed(3, 7)};
  TenantLedger ledger_{TenantLimit::kSessions, &TenantLimits::sessions, limits_};
};

TEST_F(TenantLedgerTest, EachTenantHasItsOwnBound) {
  EXPECT_TRUE(ledger_.Take("a", 3).ok());
  const absl::Status refused = ledger_.Take("a", 1);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("holds 3 sessions, and 1 more"));
  EXPECT_TRUE(ledger_.Take("b", 3).ok());
  EXPECT_TRUE(ledger_.Take("listed", 7).ok());
  EXPECT_FALSE(ledger_.Take("listed", 1).ok());
  EXPECT_THAT(ledger_.ByTenant(), ElementsAre(Pair("a", 3), Pair("b", 3), Pair("listed", 7)));
  EXPECT_THAT(limits_.refusals(), SizeIs(2));
}

TEST_F(TenantLedgerTest, WhatIsGivenBackCanBeTakenAgainAndLeavesNoName) {
  EXPECT_TRUE(ledger_.Take("a", 3).ok());
  ledger_.Give("a", 1);
  EXPECT_TRUE(ledger_.Take("a", 1).ok());
  ledger_.Give("a", 3);
  EXPECT_EQ(ledger_.HeldBy("a"), 0);
  EXPECT_THAT(ledger_.ByTenant(), ::testing::IsEmpty());
}

TEST_F(TenantLedgerTest, ALimitBelowTheUseRefusesTheNewAndTakesNothingAway) {
  EXPECT_TRUE(ledger_.Take("listed", 5).ok());
  limits_.Replace(OneListed(3, 2));
  EXPECT_EQ(ledger_.HeldBy("listed"), 5);
  EXPECT_FALSE(ledger_.Take("listed", 1).ok());
  EXPECT_FALSE(ledger_.Check("listed", 1).ok());
  ledger_.Give("listed", 4);
  EXPECT_TRUE(ledger_.Take("listed", 1).ok());
}

TEST_F(TenantLedgerTest, NoBoundMeansAnyAmount) {
  limits_.Replace({});
  EXPECT_TRUE(ledger_.Take("a", TenantLimits::kNone - 1).ok());
  EXPECT_TRUE(ledger_.Take("a", 1).ok());
}

TEST_F(TenantLedgerTest, ManyThreadsNeverExceedTheBound) {
  limits_.Replace(OneListed(100, 7));
  std::atomic<int> taken{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        if (!ledger_.Take("a", 1).ok()) continue;
        if (taken.fetch_add(1) >= 100) ADD_FAILURE() << "more than the bound";
        taken.fetch_sub(1);
        ledger_.Give("a", 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ledger_.HeldBy("a"), 0);
}

}  // namespace
}  // namespace attention::server
