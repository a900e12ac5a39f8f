#include "server/scheduler/work_queue.h"

#include <gmock/gmock.h>

#include <functional>
#include <map>
#include <new>

#include "tests/support/failing_new.h"

namespace attention::server {
namespace {

using ::testing::ElementsAre;

const absl::Time kStart = absl::FromUnixSeconds(1'000'000);
constexpr absl::Duration kMs = absl::Milliseconds(1);

// A layer's key; never dereferenced.
std::shared_ptr<KvCache> Cache(int id) {
  return {std::shared_ptr<void>(), reinterpret_cast<KvCache*>(static_cast<std::uintptr_t>(id))};
}

// A request for the tests, described field by field.
struct Spec {
  std::string tenant = "a";
  absl::Duration work = kMs;
  absl::Duration arrival = absl::ZeroDuration();
  absl::Duration deadline = absl::InfiniteDuration();
  Priority priority = Priority::kNormal;
  int session = 0;  // 0: stateless
  std::int64_t id = 0;
};

std::unique_ptr<AttentionRequest> Request(const Spec& spec) {
  auto request = std::make_unique<AttentionRequest>();
  request->tenant = spec.tenant;
  request->work = spec.work;
  request->arrival = kStart + spec.arrival;
  request->deadline = kStart + spec.deadline;
  request->priority = spec.priority;
  request->bytes = spec.id;  // tells requests apart
  if (spec.session != 0) {
    request->steps.emplace_back();
    request->steps.back().cache = Cache(spec.session);
  }
  return request;
}

// A long request that does as much of its work in a slice as the test says.
class FakeSliced final : public SlicedRequest {
 public:
  explicit FakeSliced(std::unique_ptr<AttentionRequest> request) : request_(std::move(request)) {}
  const AttentionRequest& request() const override { return *request_; }
  double progress() const override { return progress_; }
  bool RunSlice(const std::atomic<bool>&) override { return false; }
  void Abandon(const absl::Status&) override {}
  void set_progress(double progress) { progress_ = progress; }

 private:
  std::unique_ptr<AttentionRequest> request_;
  double progress_ = 0;
};

std::vector<std::int64_t> IdsOf(const Decision& decision) {
  std::vector<std::int64_t> ids;
  for (const auto& request : decision.batch) ids.push_back(request->bytes);
  return ids;
}

TenantLimitsSet Shares(const std::map<std::string, double>& shares) {
  TenantLimitsSet set;
  for (const auto& [tenant, share] : shares) set.listed[tenant].share = share;
  return set;
}

class WorkQueueTest : public ::testing::Test {
 protected:
  void Add(const Spec& spec) { queue_->Add(Request(spec)); }
  // Takes what is next; all of a batch counts as computed.
  Decision Next(absl::Duration now = absl::ZeroDuration()) {
    Decision decision = queue_->Next(kStart + now);
    queue_->EndBatch(std::vector<double>(decision.batch.size(), 1));
    return decision;
  }

  void UseShortBatchesWhenContended() {
    policy_.max_contended_batch_work = kMs;
    queue_.emplace(policy_);
  }

  // Runs the whole of what is next as a device would whose slices are a millisecond long, and adds
  // up each tenant's work. Long requests in progress are put back.
  void RunNext() {
    Decision decision = Next();
    for (const auto& request : decision.batch) work_[request->tenant] += request->work;
    if (decision.long_request != nullptr) {
      decision.sliced = std::make_unique<FakeSliced>(std::move(decision.long_request));
    }
    if (decision.sliced == nullptr) return;
    auto* sliced = static_cast<FakeSliced*>(decision.sliced.get());
    const AttentionRequest& request = sliced->request();
    const double step = std::min(absl::FDivDuration(kMs, request.work), 1 - sliced->progress());
    sliced->set_progress(sliced->progress() + step);
    work_[request.tenant] += step * request.work;
    long_work_ += step * request.work;
    const double progress = sliced->progress();
    if (progress >= 1 - 1e-9) decision.sliced.reset();
    queue_->EndSlice(std::move(decision.sliced), progress);
  }

  WorkPolicy policy_ = {
      .max_batch_requests = 8, .max_batch_work = 5 * kMs, .max_contended_batch_work = 5 * kMs};
  std::optional<WorkQueue> queue_{policy_};
  std::map<std::string, absl::Duration> work_;
  absl::Duration long_work_;
};

// --- Batches ---

TEST_F(WorkQueueTest, NothingQueuedIsNothingToDo) {
  const Decision decision = Next();
  EXPECT_TRUE(decision.batch.empty());
  EXPECT_EQ(decision.long_request, nullptr);
  EXPECT_EQ(decision.sliced, nullptr);
  EXPECT_TRUE(queue_->empty());
}

TEST_F(WorkQueueTest, TakesWhatIsThereInOrderOfArrival) {
  for (int i = 1; i <= 3; ++i) Add({.id = i});
  EXPECT_EQ(queue_->load().requests, 3);
  EXPECT_EQ(queue_->load().work, 3 * kMs);
  EXPECT_THAT(IdsOf(Next()), ElementsAre(1, 2, 3));
  EXPECT_TRUE(queue_->empty());
  EXPECT_EQ(queue_->load().work, absl::ZeroDuration());
}

TEST_F(WorkQueueTest, StopsAtTheLimitOfRequests) {
  for (int i = 0; i < 20; ++i) Add({.work = absl::Microseconds(1)});
  EXPECT_EQ(Next().batch.size(), 8u);
  EXPECT_EQ(queue_->load().requests, 12);
}

TEST_F(WorkQueueTest, StopsAtTheBudgetOfWork) {
  for (int i = 0; i < 4; ++i) Add({.work = 2 * kMs});
  EXPECT_EQ(Next().batch.size(), 2u);
  EXPECT_EQ(Next().batch.size(), 2u);
}

// --- Contention ---

// A batch is short as soon as a second tenant has shown itself, and for a while after.
TEST_F(WorkQueueTest, BatchesAreShorterWhileTenantsContend) {
  UseShortBatchesWhenContended();
  const auto requests_of_next = [&](absl::Duration now) {
    for (int i = 0; i < 20; ++i) Add({.tenant = "a", .arrival = now});
    return Next(now).batch.size();
  };
  EXPECT_EQ(requests_of_next(absl::ZeroDuration()), 5u);
  Add({.tenant = "b"});
  EXPECT_EQ(requests_of_next(absl::ZeroDuration()), 1u);
  EXPECT_EQ(requests_of_next(policy_.contention_memory / 2), 1u);
  EXPECT_EQ(requests_of_next(2 * policy_.contention_memory), 5u);
}

TEST_F(WorkQueueTest, ATenantThatTurnsUpBetweenBatchesOfAnotherShortensThem) {
  UseShortBatchesWhenContended();
  Add({.tenant = "a"});
  Next();
  Add({.tenant = "b"});
  Next();
  for (int i = 0; i < 20; ++i) Add({.tenant = "a"});
  EXPECT_EQ(Next().batch.size(), 1u);
}

// --- Expired and cancelled work ---

TEST_F(WorkQueueTest, ExpiredAndCancelledWorkIsDroppedWithItsReason) {
  Add({.deadline = kMs, .id = 1});
  auto cancelled = Request({.id = 2});
  cancelled->is_cancelled = std::make_shared<std::atomic<bool>>(true);
  queue_->Add(std::move(cancelled));
  Add({.deadline = kMs + absl::Nanoseconds(1), .id = 3});
  const Decision decision = Next(kMs);
  EXPECT_THAT(IdsOf(decision), ElementsAre(3));
  ASSERT_EQ(decision.dropped.size(), 2u);
  EXPECT_EQ(decision.dropped[0].reason, DropReason::kDeadline);
  EXPECT_EQ(decision.dropped[1].reason, DropReason::kCancelled);
}

TEST_F(WorkQueueTest, AnExpiredCallThatGrpcCancelledCountsAsExpired) {
  auto both = Request({.deadline = kMs});
  both->is_cancelled = std::make_shared<std::atomic<bool>>(true);
  queue_->Add(std::move(both));
  const std::vector<DroppedRequest> dropped = queue_->TakeExpiredAndCancelled(kStart + kMs);
  ASSERT_EQ(dropped.size(), 1u);
  EXPECT_EQ(dropped[0].reason, DropReason::kDeadline);
  EXPECT_TRUE(queue_->empty());
}

TEST_F(WorkQueueTest, ALongRequestThatIsCancelledBetweenSlicesIsAbandoned) {
  auto request = Request({.work = absl::Seconds(1)});
  auto is_cancelled = std::make_shared<std::atomic<bool>>(false);
  request->is_cancelled = is_cancelled;
  queue_->Add(std::move(request));
  RunNext();
  EXPECT_FALSE(queue_->empty());
  is_cancelled->store(true);
  const Decision decision = Next();
  ASSERT_EQ(decision.abandoned.size(), 1u);
  EXPECT_EQ(decision.abandoned[0].reason, DropReason::kCancelled);
  EXPECT_TRUE(queue_->empty());
}

// --- Between tenants ---

TEST_F(WorkQueueTest, AFloodingTenantDoesNotDelayAnother) {
  for (int i = 0; i < 100; ++i) Add({.tenant = "flood", .work = 2 * kMs, .id = 1});
  Add({.tenant = "quiet", .work = 2 * kMs, .id = 2});
  EXPECT_THAT(IdsOf(Next()), ElementsAre(1, 2));
}

TEST_F(WorkQueueTest, WorkNotRequestsIsShared) {
  for (int i = 0; i < 50; ++i) Add({.tenant = "large", .work = 4 * kMs});
  for (int i = 0; i < 200; ++i) Add({.tenant = "small", .work = kMs});
  while (work_["large"] + work_["small"] < 100 * kMs) RunNext();
  EXPECT_NEAR(absl::FDivDuration(work_["large"], work_["small"]), 1, 0.1);
}

TEST_F(WorkQueueTest, WeightsSetTheShares) {
  TenantLimitsTable shares(Shares({{"heavy", 3}}));
  policy_.tenants.limits = &shares;
  queue_.emplace(policy_);
  for (int i = 0; i < 400; ++i) {
    Add({.tenant = "heavy"});
    Add({.tenant = "light"});
  }
  while (work_["heavy"] + work_["light"] < 200 * kMs) RunNext();
  EXPECT_NEAR(absl::FDivDuration(work_["heavy"], work_["light"]), 3, 0.2);
  EXPECT_EQ(queue_->ShareOf("heavy", kStart), 0.75);
  EXPECT_EQ(queue_->ShareOf("arrival", kStart), 0.2);
}

// An operator changes the shares while everybody has work.
TEST_F(WorkQueueTest, SharesThatChangeCountFromTheNextArrival) {
  TenantLimitsTable shares;
  policy_.tenants.limits = &shares;
  queue_.emplace(policy_);
  for (int i = 0; i < 800; ++i) {
    Add({.tenant = "a"});
    Add({.tenant = "b"});
  }
  while (work_["a"] + work_["b"] < 100 * kMs) RunNext();
  EXPECT_NEAR(absl::FDivDuration(work_["a"], work_["b"]), 1, 0.2);
  shares.Replace(Shares({{"a", 3}}));
  Add({.tenant = "a"});
  EXPECT_EQ(queue_->ShareOf("a", kStart), 0.75);
  EXPECT_EQ(queue_->ShareOf("b", kStart), 0.25);
  work_.clear();
  while (work_["a"] + work_["b"] < 200 * kMs) RunNext();
  EXPECT_NEAR(absl::FDivDuration(work_["a"], work_["b"]), 3, 0.2);
}

TEST_F(WorkQueueTest, IdlenessEarnsNoCredit) {
  for (int i = 0; i < 200; ++i) Add({.tenant = "busy", .work = 5 * kMs});
  for (int i = 0; i < 50; ++i) RunNext();
  for (int i = 0; i < 50; ++i) Add({.tenant = "late", .work = 5 * kMs});
  work_.clear();
  for (int i = 0; i < 20; ++i) RunNext();
  EXPECT_EQ(work_["busy"], work_["late"]);
}

TEST_F(WorkQueueTest, ComingBackAtOnceNeitherGainsNorLosesATurn) {
  for (int i = 0; i < 200; ++i) Add({.tenant = "flood", .work = 5 * kMs});
  // One request at a time: it arrives when the one before is done, while the flood's is running.
  for (int i = 0; i < 50; ++i) {
    Add({.tenant = "one", .work = 5 * kMs});
    RunNext();
    RunNext();
  }
  EXPECT_EQ(work_["one"], 250 * kMs);
}

TEST_F(WorkQueueTest, LongAndShortTenantsShareEvenly) {
  Add({.tenant = "long", .work = absl::Seconds(10)});
  for (int i = 0; i < 2000; ++i) Add({.tenant = "short"});
  while (work_["long"] + work_["short"] < absl::Seconds(1)) RunNext();
  EXPECT_NEAR(absl::FDivDuration(work_["long"], work_["short"]), 1, 0.05);
}

TEST_F(WorkQueueTest, LongRequestsOfTwoTenantsTakeTurns) {
  Add({.tenant = "a", .work = absl::Seconds(10)});
  Add({.tenant = "b", .work = absl::Seconds(10)});
  for (int i = 0; i < 100; ++i) RunNext();
  EXPECT_EQ(queue_->num_in_progress(), 2);
  EXPECT_NEAR(absl::FDivDuration(work_["a"], work_["b"]), 1, 0.05);
}

TEST_F(WorkQueueTest, WhatWasNotComputedIsGivenBack) {
  Add({.tenant = "failing", .work = 5 * kMs});
  EXPECT_EQ(queue_->Next(kStart).batch.size(), 1u);
  for (int i = 0; i < 2; ++i) {
    Add({.tenant = "failing", .work = 5 * kMs, .id = 1});
    Add({.tenant = "other", .work = 5 * kMs, .id = 2});
  }
  EXPECT_EQ(queue_->EndBatch({0.2}), kMs) << "of 5 ms";
  EXPECT_THAT(IdsOf(Next()), ElementsAre(1)) << "ahead by one millisecond, not by five";
}

TEST_F(WorkQueueTest, ALongRequestThatFailsPaysForWhatItGot) {
  Add({.tenant = "failing", .work = 20 * kMs});
  ASSERT_NE(queue_->Next(kStart).long_request, nullptr);
  queue_->EndSlice(nullptr, 0.05);
  Add({.tenant = "failing", .work = 5 * kMs, .id = 1});
  Add({.tenant = "other", .work = 5 * kMs, .id = 2});
  EXPECT_THAT(IdsOf(Next()), ElementsAre(1)) << "nobody had work: all begin together";
}

// --- Within a tenant ---

TEST_F(WorkQueueTest, HigherPriorityGoesFirst) {
  Add({.priority = Priority::kLow, .id = 3});
  Add({.priority = Priority::kNormal, .id = 2});
  Add({.priority = Priority::kHigh, .id = 1});
  EXPECT_THAT(IdsOf(Next()), ElementsAre(1, 2, 3));
}

TEST_F(WorkQueueTest, WaitingMakesUpForPriority) {
  Add({.arrival = absl::ZeroDuration(), .priority = Priority::kLow, .id = 2});
  Add({.arrival = absl::Milliseconds(1999), .priority = Priority::kHigh, .id = 1});
  Add({.arrival = absl::Milliseconds(2001), .priority = Priority::kHigh, .id = 3});
  EXPECT_THAT(IdsOf(Next()), ElementsAre(1, 2, 3));
}

TEST_F(WorkQueueTest, PriorityGainsNothingOverOtherTenants) {
  for (int i = 0; i < 20; ++i) {
    Add({.tenant = "pushy", .priority = Priority::kHigh});
    Add({.tenant = "quiet", .priority = Priority::kLow});
  }
  for (int i = 0; i < 4; ++i) RunNext();
  EXPECT_EQ(work_["pushy"], work_["quiet"]);
}

TEST_F(WorkQueueTest, BesideShortWorkALongRequestGetsItsShare) {
  Add({.work = absl::Seconds(10)});
  for (int i = 0; i < 4000; ++i) Add({});
  while (work_["a"] < absl::Seconds(2)) RunNext();
  EXPECT_NEAR(absl::FDivDuration(long_work_, work_["a"]), 0.25, 0.01);
}

TEST_F(WorkQueueTest, AloneALongRequestGetsEverything) {
  Add({.work = 20 * kMs});
  for (int i = 0; i < 20; ++i) RunNext();
  EXPECT_EQ(long_work_, 20 * kMs);
  EXPECT_TRUE(queue_->empty());
}

TEST_F(WorkQueueTest, AShortRequestThatComesBesideALongOneGoesFirst) {
  Add({.work = absl::Seconds(10)});
  for (int i = 0; i < 100; ++i) RunNext();
  Decision slice = Next();
  EXPECT_FALSE(queue_->ShouldYield());
  Add({.id = 7});
  EXPECT_TRUE(queue_->ShouldYield());
  queue_->EndSlice(std::move(slice.sliced), 0.5);
  EXPECT_THAT(IdsOf(Next()), ElementsAre(7));
}

TEST_F(WorkQueueTest, OneLongRequestOfATenantAtATime) {
  Add({.work = 10 * kMs, .id = 1});
  Add({.work = 10 * kMs, .id = 2});
  RunNext();
  EXPECT_EQ(queue_->num_in_progress(), 1);
  Decision slice = Next();
  EXPECT_EQ(slice.long_request, nullptr);
  EXPECT_FALSE(queue_->ShouldYield()) << "the other one waits for its end";
  queue_->EndSlice(std::move(slice.sliced), 0.5);
  for (int i = 0; i < 9; ++i) RunNext();
  EXPECT_EQ(queue_->num_in_progress(), 0);
  EXPECT_EQ(queue_->load().requests, 1);
}

TEST_F(WorkQueueTest, BytesOfALongRequestCountUntilItsEnd) {
  Add({.work = 10 * kMs, .id = 500});
  RunNext();
  EXPECT_EQ(queue_->load().requests, 0);
  EXPECT_EQ(queue_->load().bytes, 500);
  EXPECT_EQ(queue_->load("a", kStart).bytes, 500);
  for (int i = 0; i < 9; ++i) RunNext();
  EXPECT_EQ(queue_->load().bytes, 0);
}

// --- Steps of a session ---

TEST_F(WorkQueueTest, AStepAfterALongOneOfItsLayerWaitsForIt) {
  Add({.work = 10 * kMs, .session = 1});
  Add({.session = 1, .id = 5});
  Add({.session = 2, .id = 6});
  EXPECT_THAT(IdsOf(Next()), ElementsAre(6)) << "other sessions do not wait";
  for (int i = 0; i < 10; ++i) RunNext();
  EXPECT_EQ(queue_->num_in_progress(), 0);
  Decision last = Next();
  ASSERT_NE(last.long_request, nullptr);
  EXPECT_EQ(last.long_request->bytes, 5);
}

TEST_F(WorkQueueTest, ALongStepWaitsForTheShortOnesBeforeItInItsLayer) {
  for (int i = 1; i <= 20; ++i) Add({.session = 1, .id = i});
  Add({.work = 10 * kMs, .session = 1, .id = 100});
  std::vector<std::int64_t> order;
  while (order.size() < 21) {
    Decision decision = Next();
    for (const std::int64_t id : IdsOf(decision)) order.push_back(id);
    if (decision.long_request != nullptr) {
      order.push_back(decision.long_request->bytes);
      queue_->EndSlice(nullptr, 1);
    }
  }
  for (int i = 0; i < 20; ++i) EXPECT_EQ(order[i], i + 1);
  EXPECT_EQ(order[20], 100);
}

TEST_F(WorkQueueTest, StepsOfALayerNeverOvertakeWhateverTheirLength) {
  for (int i = 1; i <= 200; ++i) {
    Add({.work = (i * 7919) % 5 == 0 ? 7 * kMs : kMs, .session = 1 + i % 3, .id = i});
  }
  std::map<int, std::int64_t> last;
  const auto see = [&](const AttentionRequest& request) {
    const int session = static_cast<int>(1 + request.bytes % 3);
    EXPECT_LT(last[session], request.bytes);
    last[session] = request.bytes;
  };
  while (!queue_->empty()) {
    Decision decision = Next();
    for (const auto& request : decision.batch) see(*request);
    if (decision.long_request != nullptr) {
      see(*decision.long_request);
      queue_->EndSlice(std::make_unique<FakeSliced>(std::move(decision.long_request)), 0);
    } else if (decision.sliced != nullptr) {
      queue_->EndSlice(nullptr, 1);
    }
  }
}

// Each allocation fails in turn.
TEST_F(WorkQueueTest, WhatMemoryIsOutForWasNeverThereAndTheRestIsTakenOnce) {
  const Spec specs[] = {{.id = 1},
                        {.tenant = "b", .session = 1, .id = 2},
                        {.tenant = "b", .work = 20 * kMs, .session = 1, .id = 3},
                        {.tenant = "c", .deadline = absl::ZeroDuration(), .id = 4}};
  int num_failures = 0;
  for (bool has_failed = true; has_failed;) {
    queue_.emplace(policy_);
    int added[5] = {}, taken[5] = {};  // by id
    {
      const attention::testing::FailingAllocation failing(++num_failures);
      for (const Spec& spec : specs) {
        try {
          Add(spec);
          ++added[spec.id];
        } catch (const std::bad_alloc&) {
        }
      }
      for (int i = 0; i < 10 && !queue_->empty(); ++i) {
        Decision decision;
        try {
          queue_->Next(kStart, decision);
        } catch (const std::bad_alloc&) {
        }
        for (const auto& request : decision.batch) ++taken[request->bytes];
        for (const DroppedRequest& dropped : decision.dropped) ++taken[dropped.request->bytes];
        queue_->EndBatch({});
        if (decision.long_request == nullptr) continue;
        ++taken[decision.long_request->bytes];
        queue_->EndSlice(nullptr, 1);
      }
      has_failed = failing.has_failed();
    }
    SCOPED_TRACE(num_failures);
    EXPECT_TRUE(queue_->empty());
    EXPECT_EQ(queue_->load().bytes, 0);
    EXPECT_EQ(queue_->load().work, absl::ZeroDuration());
    EXPECT_THAT(taken, ::testing::ElementsAreArray(added));
  }
  EXPECT_GT(num_failures, 10);
}

TEST_F(WorkQueueTest, TakingAllLeavesNothing) {
  Add({.work = 10 * kMs, .session = 1, .id = 1});
  RunNext();
  Add({.session = 1, .id = 2});
  Add({.session = 2, .id = 3});
  EXPECT_EQ(queue_->TakeAllSliced().size(), 1u);
  EXPECT_EQ(queue_->TakeAll().size(), 2u);
  EXPECT_TRUE(queue_->empty());
  EXPECT_EQ(queue_->load().bytes, 0);
}

}  // namespace
}  // namespace attention::server
