#include "server/scheduler/batch_policy.h"

#include <gtest/gtest.h>

namespace attention::server {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);
constexpr BatchLimits kLimits{8, 100e6};

std::unique_ptr<AttentionRequest> Request(const std::string& tenant, double flops,
                                          absl::Time deadline = absl::InfiniteFuture()) {
  auto request = std::make_unique<AttentionRequest>();
  request->tenant = tenant;
  request->flops = flops;
  request->deadline = deadline;
  return request;
}

std::vector<std::string> TenantsOf(const BatchDecision& decision) {
  std::vector<std::string> tenants;
  for (const auto& request : decision.batch) tenants.push_back(request->tenant);
  return tenants;
}

TEST(BatchPolicyTest, EmptyQueuesGiveAnEmptyBatch) {
  TenantQueues queues;
  const BatchDecision decision = TakeBatch(queues, kNow, kLimits);
  EXPECT_TRUE(decision.batch.empty());
  EXPECT_TRUE(decision.dropped.empty());
}

TEST(BatchPolicyTest, TakesWhatIsThereInOrderOfArrival) {
  TenantQueues queues;
  for (int i = 1; i <= 3; ++i) Enqueue(queues, Request("a", i * 1e6));
  const BatchDecision decision = TakeBatch(queues, kNow, kLimits);
  ASSERT_EQ(decision.batch.size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(decision.batch[i]->flops, (i + 1) * 1e6);
  EXPECT_TRUE(queues.empty());
}

TEST(BatchPolicyTest, StopsAtTheRequestLimit) {
  TenantQueues queues;
  for (int i = 0; i < 20; ++i) Enqueue(queues, Request("a", 1));
  EXPECT_EQ(TakeBatch(queues, kNow, kLimits).batch.size(), 8u);
  EXPECT_EQ(queues["a"].requests.size(), 12u);
}

TEST(BatchPolicyTest, StopsAtTheWorkLimit) {
  TenantQueues queues;
  for (int i = 0; i < 4; ++i) Enqueue(queues, Request("a", 40e6));
  EXPECT_EQ(TakeBatch(queues, kNow, kLimits).batch.size(), 2u);
  EXPECT_EQ(TakeBatch(queues, kNow, kLimits).batch.size(), 2u);
}

TEST(BatchPolicyTest, ARequestAboveTheWorkLimitRunsAlone) {
  TenantQueues queues;
  Enqueue(queues, Request("a", 500e6));
  Enqueue(queues, Request("a", 1e6));
  EXPECT_EQ(TakeBatch(queues, kNow, kLimits).batch.size(), 1u);
  EXPECT_EQ(TakeBatch(queues, kNow, kLimits).batch.size(), 1u);
}

TEST(BatchPolicyTest, ExpiredAndCancelledWorkIsDroppedWithItsReason) {
  TenantQueues queues;
  Enqueue(queues, Request("a", 1e6, kNow));
  auto cancelled = Request("a", 1e6);
  cancelled->is_cancelled = std::make_shared<std::atomic<bool>>(true);
  Enqueue(queues, std::move(cancelled));
  Enqueue(queues, Request("a", 1e6, kNow + absl::Nanoseconds(1)));
  const BatchDecision decision = TakeBatch(queues, kNow, kLimits);
  EXPECT_EQ(decision.batch.size(), 1u);
  ASSERT_EQ(decision.dropped.size(), 2u);
  EXPECT_EQ(decision.dropped[0].reason, DropReason::kDeadline);
  EXPECT_EQ(decision.dropped[1].reason, DropReason::kCancelled);
}

TEST(BatchPolicyTest, AnExpiredCallThatGrpcCancelledCountsAsExpired) {
  TenantQueues queues;
  auto both = Request("a", 1e6, kNow);
  both->is_cancelled = std::make_shared<std::atomic<bool>>(true);
  Enqueue(queues, std::move(both));
  const std::vector<DroppedRequest> dropped = TakeDead(queues, kNow);
  ASSERT_EQ(dropped.size(), 1u);
  EXPECT_EQ(dropped[0].reason, DropReason::kDeadline);
  EXPECT_TRUE(queues.empty());
}

TEST(BatchPolicyTest, AFloodingTenantDoesNotDelayAnother) {
  TenantQueues queues;
  for (int i = 0; i < 100; ++i) Enqueue(queues, Request("flood", 10e6));
  Enqueue(queues, Request("quiet", 10e6));
  const auto tenants = TenantsOf(TakeBatch(queues, kNow, {2, 1e9}));
  EXPECT_EQ(tenants, (std::vector<std::string>{"flood", "quiet"}));
}

TEST(BatchPolicyTest, WorkNotRequestsIsSharedEvenly) {
  TenantQueues queues;
  for (int i = 0; i < 10; ++i) Enqueue(queues, Request("large", 40e6));
  for (int i = 0; i < 40; ++i) Enqueue(queues, Request("small", 10e6));
  std::map<std::string, double> flops;
  for (int i = 0; i < 10; ++i) {
    for (const auto& request : TakeBatch(queues, kNow, {1, 1e9}).batch) {
      flops[request->tenant] += request->flops;
    }
  }
  EXPECT_NEAR(flops["large"], flops["small"], 40e6);
}

TEST(BatchPolicyTest, IdlenessEarnsNoCredit) {
  TenantQueues queues;
  for (int i = 0; i < 50; ++i) Enqueue(queues, Request("busy", 10e6));
  for (int i = 0; i < 20; ++i) TakeBatch(queues, kNow, {1, 1e9});
  for (int i = 0; i < 50; ++i) Enqueue(queues, Request("late", 10e6));
  std::map<std::string, int> served;
  for (int i = 0; i < 20; ++i) ++served[TenantsOf(TakeBatch(queues, kNow, {1, 1e9}))[0]];
  EXPECT_EQ(served["busy"], 10);
  EXPECT_EQ(served["late"], 10);
}

TEST(BatchPolicyTest, RequestsOfOneTenantNeverOvertake) {
  TenantQueues queues;
  for (int i = 0; i < 30; ++i) {
    auto request = Request("a", i % 3 == 0 ? 90e6 : 1e6);
    request->bytes = i;
    Enqueue(queues, std::move(request));
  }
  std::int64_t next = 0;
  while (!queues.empty()) {
    for (const auto& request : TakeBatch(queues, kNow, kLimits).batch) {
      EXPECT_EQ(request->bytes, next++);
    }
  }
  EXPECT_EQ(next, 30);
}

TEST(RetryDelayTest, IsTheTimeToWorkOffTheQueueWithinBounds) {
  EXPECT_EQ(RetryDelay(100, 200), absl::Milliseconds(500));
  EXPECT_EQ(RetryDelay(1, 1e9), absl::Milliseconds(1));
  EXPECT_EQ(RetryDelay(1000000, 1), absl::Seconds(10));
  EXPECT_GT(RetryDelay(5, 0), absl::ZeroDuration());
}

}  // namespace
}  // namespace attention::server
