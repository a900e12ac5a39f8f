#include "server/scheduler/tenant_table.h"

#include <gmock/gmock.h>

#include <map>

#include "server/scheduler/work_queue.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);
constexpr absl::Duration kMs = absl::Milliseconds(1);

TenantLimitsSet Listed(const std::vector<std::string>& tenants) {
  TenantLimitsSet set;
  for (const std::string& tenant : tenants) set.listed[tenant];
  return set;
}

// The tenants that have a turn of their own, and what it means for the work that a queue gives out.
class TenantTableTest : public ::testing::Test {
 protected:
  struct Spec {
    std::string tenant;
    absl::Duration work = kMs;
    absl::Duration arrival = absl::ZeroDuration();
    Priority priority = Priority::kNormal;
    std::int64_t bytes = 0;
  };
  void Add(const Spec& spec) {
    auto request = std::make_unique<AttentionRequest>();
    request->tenant = spec.tenant;
    request->work = spec.work;
    request->arrival = kStart + spec.arrival;
    request->priority = spec.priority;
    request->bytes = spec.bytes;
    queue_->Add(std::move(request));
  }
  // Takes what is next; all of a batch counts as computed.
  Decision Next(absl::Duration now = absl::ZeroDuration()) {
    Decision decision = queue_->Next(kStart + now);
    queue_->EndBatch(std::vector<double>(decision.batch.size(), 1));
    return decision;
  }
  void UseTenants(const TenantTable::Limits& limits) {
    policy_.tenants = limits;
    queue_.emplace(policy_);
  }

  WorkPolicy policy_ = {.max_batch_work = 5 * kMs, .max_contended_batch_work = 5 * kMs};
  std::optional<WorkQueue> queue_{policy_};
};

// A name of its own for each call must not be worth more than one name for all.
TEST_F(TenantTableTest, NamesThatAreInventedForEachCallShareOneTurn) {
  TenantLimitsTable shares(Listed({"listed"}));
  UseTenants({.limits = &shares, .max_unlisted = 4});
  int next_name = 0;
  const auto invent = [&](absl::Duration now) {
    Add({.tenant = "new" + std::to_string(next_name++),
         .work = 5 * kMs,
         .arrival = now,
         .bytes = 1});
  };
  for (int i = 0; i < 24; ++i) invent(absl::ZeroDuration());
  std::map<std::string, int> num_served;
  for (const char* name : {"listed", "honest"}) Add({.tenant = name, .work = 5 * kMs, .bytes = 2});
  for (int i = 1; i <= 200; ++i) {
    const absl::Duration now = i * 5 * kMs;
    for (const auto& request : Next(now).batch) {
      ++num_served[request->bytes == 1 ? "new" : request->tenant];
      if (request->bytes == 1) {
        invent(now);
      } else {
        Add({.tenant = request->tenant, .work = 5 * kMs, .arrival = now, .bytes = 2});
      }
    }
  }
  EXPECT_GT(num_served["listed"], 60) << "two tenants and those who invent names";
  EXPECT_GT(num_served["new"], 60);
  EXPECT_GE(num_served["honest"], 4) << "waits its turn among the names";
}

TEST_F(TenantTableTest, InventedNamesCannotTakeTheWholeQueue) {
  UseTenants({.max_unlisted = 2});
  for (int i = 0; i < 10; ++i) Add({.tenant = "new" + std::to_string(i), .bytes = 100});
  EXPECT_EQ(queue_->load("new0", kStart).requests, 1);
  EXPECT_EQ(queue_->load("new9", kStart).requests, 8) << "of the turn that it shares";
  EXPECT_EQ(queue_->load("never seen", kStart).bytes, 800);
  EXPECT_TRUE(queue_->IsShared("never seen", kStart));
  EXPECT_EQ(queue_->NumWaiting("new9"), 1);
  EXPECT_EQ(queue_->NumWaiting("never seen"), 0);
  EXPECT_DOUBLE_EQ(queue_->ShareOf("never seen", kStart), 1.0 / 3);
}

TEST_F(TenantTableTest, PriorityDoesNotCountAmongTenantsThatShareATurn) {
  UseTenants({.max_unlisted = 0});
  Add({.tenant = "quiet", .priority = Priority::kLow});
  Add({.tenant = "pushy", .arrival = kMs, .priority = Priority::kHigh});
  std::vector<std::string> order;
  for (const auto& request : Next(2 * kMs).batch) order.push_back(request->tenant);
  EXPECT_THAT(order, ElementsAre("quiet", "pushy"));
}

TEST_F(TenantTableTest, ATenantThatHasBeenIdleForLongMakesRoomForAnother) {
  UseTenants({.max_unlisted = 1, .memory = absl::Seconds(10)});
  Add({.tenant = "first"});
  Next();
  EXPECT_TRUE(queue_->IsShared("second", kStart + absl::Seconds(9)));
  EXPECT_FALSE(queue_->IsShared("second", kStart + absl::Seconds(10)));
  Add({.tenant = "second", .arrival = absl::Seconds(10)});
  EXPECT_FALSE(queue_->IsShared("second", kStart + absl::Seconds(10)));
  EXPECT_TRUE(queue_->IsShared("first", kStart + absl::Seconds(11))) << "it comes back too late";
}

// An operator lists a tenant, and takes it from the list again, while the server runs.
TEST_F(TenantTableTest, WhoIsListedHasATurnOfItsOwnFromThenOn) {
  TenantLimitsTable limits;
  UseTenants({.limits = &limits, .max_unlisted = 1, .memory = absl::Seconds(10)});
  Add({.tenant = "first"});
  EXPECT_TRUE(queue_->IsShared("second", kStart));
  limits.Replace(Listed({"second", "first"}));
  Add({.tenant = "first"});
  EXPECT_FALSE(queue_->IsShared("second", kStart));
  EXPECT_FALSE(queue_->IsShared("third", kStart)) << "first left the place to others";
  Add({.tenant = "second"});
  limits.Replace({});
  Add({.tenant = "first"});
  EXPECT_EQ(queue_->load("second", kStart).requests, 1) << "what waits stays where it is";
  EXPECT_TRUE(queue_->IsShared("third", kStart));
}

TEST_F(TenantTableTest, WhoIsListedWhileItWaitsInTheSharedTurnLeavesThatFirst) {
  TenantLimitsTable limits;
  UseTenants({.limits = &limits, .max_unlisted = 0});
  Add({.tenant = "a"});
  limits.Replace(Listed({"a"}));
  Add({.tenant = "a"});
  EXPECT_TRUE(queue_->IsShared("a", kStart)) << "its steps would overtake each other";
  Next();
  EXPECT_FALSE(queue_->IsShared("a", kStart));
}

// Its steps would overtake each other.
TEST_F(TenantTableTest, ATenantStaysInTheSharedTurnWhileItWaitsThere) {
  UseTenants({.max_unlisted = 1, .memory = absl::Seconds(10)});
  Add({.tenant = "first"});
  Add({.tenant = "second", .work = 20 * kMs});
  Next();
  EXPECT_TRUE(queue_->IsShared("second", kStart + absl::Seconds(20))) << "it waits";
  Decision slice = Next(absl::Seconds(20));
  ASSERT_NE(slice.long_request, nullptr);
  EXPECT_TRUE(queue_->IsShared("second", kStart + absl::Seconds(20))) << "it runs";
  queue_->EndSlice(nullptr, 1);
  EXPECT_FALSE(queue_->IsShared("second", kStart + absl::Seconds(20)));
}

}  // namespace
}  // namespace attention::server
