#include "server/engine/spiller.h"

#include <gmock/gmock.h>

#include <memory>
#include <optional>
#include <vector>

#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "server/engine/worker.h"
#include "tests/support/fake_clock.h"
#include "tests/support/faulty_backend.h"
#include "tests/unit/server/engine/one_head_step.h"

namespace attention::server {
namespace {

using ::attention::testing::Faults;
using ::attention::testing::FaultyBackend;
using ::attention::testing::OneHeadStep;

constexpr int kDim = 8;
constexpr std::size_t kChunk = std::size_t{1} << 12;
constexpr KvGeometry kGeometry{1, kDim, kDim, DType::kFloat32};  // a page of 16 tokens is 1 KiB

// A device for 8 pages, a host for 8 more, and sessions of up to 4 each.
class SpillerTest : public ::testing::Test {
 protected:
  SpillerTest() { faults_.memory_outlives = false; }

  std::shared_ptr<KvCache> NewCache() { return *factory_.Create(kGeometry, 1, 0); }

  // Appends tokens [begin, end) and attends with the last one. Rows differ by session and token.
  std::unique_ptr<AttentionRequest> Request(const std::shared_ptr<KvCache>& cache, float session,
                                            std::int64_t begin, std::int64_t end) {
    std::vector<float>& rows = rows_.emplace_back();
    for (std::int64_t token = begin; token < end; ++token) {
      for (int i = 0; i < kDim; ++i) rows.push_back(session + 0.01f * (token * 7 % 11 + i));
    }
    const SessionStep step =
        OneHeadStep(cache, begin, end - begin, /*q_len=*/1, kDim, rows.data(), output_.data());
    auto request = std::make_unique<AttentionRequest>();
    request->arrival = clock_.Now();
    request->steps.push_back(step);
    request->completion = [this](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      result_ = std::move(result);
    };
    return request;
  }

  absl::Status Run(Worker& worker, const std::shared_ptr<KvCache>& cache, float session,
                   std::int64_t begin, std::int64_t end) {
    std::vector<std::unique_ptr<AttentionRequest>> requests;
    requests.push_back(Request(cache, session, begin, end));
    worker.Execute({std::move(requests), clock_.Now()});
    return Outcome();
  }
  absl::Status Run(const std::shared_ptr<KvCache>& cache, float session, std::int64_t begin,
                   std::int64_t end) {
    return Run(worker_, cache, session, begin, end);
  }
  absl::Status Outcome() {
    const AttentionResult result = *std::exchange(result_, std::nullopt);
    return result.status.ok() ? result.steps[0].status : result.status;
  }
  static std::string ReasonOf(const absl::Status& status) {
    return GetErrorDetail(status).has_value() ? std::string(GetErrorDetail(status)->reason) : "";
  }

  FakeClock clock_;
  ServerMetrics metrics_;
  Faults faults_;
  std::unique_ptr<AttentionBackend> backend_ = std::make_unique<FaultyBackend>(faults_);
  PagePool pages_{backend_->memory(), 2 * kChunk, kChunk};
  PagePool host_pages_{backend_->memory(), 2 * kChunk, kChunk};
  CacheList caches_;
  Spiller spiller_{*backend_, pages_, host_pages_, caches_, absl::Seconds(10), clock_, metrics_};
  Worker worker_{*backend_, clock_, metrics_, {.spiller = &spiller_}};
  KvCacheFactory factory_{{{*backend_, pages_, &caches_, &host_pages_}}, /*page_size=*/16};
  std::vector<std::vector<float>> rows_;
  std::vector<float> output_ = std::vector<float>(kDim);
  std::optional<AttentionResult> result_;
};

// More sessions than the device holds, in turn: each step's result has the bits that a device with
// room for all gives.
TEST_F(SpillerTest, SessionsInTurnGiveTheBitsOfADeviceWithRoomForAll) {
  PagePool large(backend_->memory(), 16 * kChunk, kChunk);
  Worker unlimited(*backend_, clock_, metrics_);
  const KvCacheFactory factory({{*backend_, large}}, 16);
  std::vector<std::shared_ptr<KvCache>> few, all;
  for (int i = 0; i < 3; ++i) {
    few.push_back(NewCache());
    all.push_back(*factory.Create(kGeometry, 1, 0));
  }
  for (int round = 0; round < 6; ++round) {
    for (int i = 0; i < 3; ++i) {
      SCOPED_TRACE(::testing::Message() << "round " << round << ", session " << i);
      const std::int64_t begin = round * 9, end = begin + 9;
      ASSERT_TRUE(Run(unlimited, all[i], i, begin, end).ok());
      const std::vector<float> expected = output_;
      output_.assign(kDim, -1);
      const absl::Status status = Run(few[i], i, begin, end);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(output_, expected);
      clock_.Advance(absl::Seconds(10));
    }
  }
  EXPECT_GT(metrics_.sessions_spilled.value(), 4);
  EXPECT_GT(metrics_.sessions_restored.value(), 4);
  EXPECT_LE(pages_.used_bytes(), pages_.capacity_bytes());
  few.clear();
  EXPECT_EQ(pages_.used_bytes() + host_pages_.used_bytes(), 0u) << "nothing stays behind";
}

TEST_F(SpillerTest, WhoWasUsedJustNowStaysAndTheStepIsRefused) {
  const auto first = NewCache(), second = NewCache(), third = NewCache();
  ASSERT_TRUE(Run(first, 1, 0, 64).ok());
  clock_.Advance(absl::Seconds(8));
  ASSERT_TRUE(Run(second, 2, 0, 64).ok());
  EXPECT_EQ(ReasonOf(Run(third, 3, 0, 16)), "KV_EXHAUSTED");
  EXPECT_EQ(metrics_.sessions_spilled.value(), 0);
  clock_.Advance(absl::Seconds(2));
  EXPECT_TRUE(Run(third, 3, 0, 16).ok());
  EXPECT_TRUE(first->is_spilled()) << "the one that was idle for longest";
  EXPECT_FALSE(second->is_spilled());
}

// A tenant at its limit makes room from what is its own, however much others leave idle.
TEST_F(SpillerTest, ATenantAtItsLimitSpillsItsOwnSessionsAndNobodyElses) {
  TenantLimitsTable limits(TenantLimitsSet{{.kv_bytes = 4 << 10}, {}});  // 4 pages
  TenantLedger ledger(TenantLimit::kKvBytes, &TenantLimits::kv_bytes, limits);
  const KvCacheFactory counted({{*backend_, pages_, &caches_, &host_pages_}}, 16, &ledger);
  const auto of_b = *counted.Create(kGeometry, 1, 0, "b");
  const auto first = *counted.Create(kGeometry, 1, 0, "a");
  const auto second = *counted.Create(kGeometry, 1, 0, "a");
  ASSERT_TRUE(Run(of_b, 1, 0, 16).ok());
  ASSERT_TRUE(Run(first, 1, 0, 48).ok());
  EXPECT_EQ(ledger.HeldBy("a"), 3 << 10);
  EXPECT_EQ(ReasonOf(Run(second, 2, 0, 32)), "QUOTA_EXCEEDED") << "nothing has been idle for long";
  EXPECT_EQ(metrics_.sessions_spilled.value(), 0);
  clock_.Advance(absl::Minutes(1));
  EXPECT_TRUE(Run(second, 2, 0, 32).ok());
  EXPECT_TRUE(first->is_spilled());
  EXPECT_FALSE(of_b->is_spilled());
  EXPECT_EQ(ledger.HeldBy("a"), 2 << 10) << "pages on the host do not count";
  clock_.Advance(absl::Minutes(1));
  EXPECT_TRUE(Run(first, 1, 48, 49).ok()) << "it comes back, for which the other one goes";
  EXPECT_TRUE(second->is_spilled());
  EXPECT_EQ(ledger.HeldBy("a"), 4 << 10);
  EXPECT_EQ(ledger.HeldBy("b"), 1 << 10);
}

TEST_F(SpillerTest, StepsOfOneBatchDoNotTakePagesFromEachOther) {
  std::vector<std::shared_ptr<KvCache>> caches = {NewCache(), NewCache(), NewCache()};
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(Run(caches[i], i, 0, 64).ok());
  clock_.Advance(absl::Minutes(1));
  std::vector<std::unique_ptr<AttentionRequest>> requests;
  std::vector<absl::Status> outcomes(3);
  for (int i = 0; i < 3; ++i) {
    requests.push_back(Request(caches[i], i, i < 2 ? 64 : 0, i < 2 ? 64 : 64));
    requests[i]->completion = [&outcomes, i](std::unique_ptr<AttentionRequest>,
                                             AttentionResult result) {
      outcomes[i] = result.status.ok() ? result.steps[0].status : result.status;
    };
    if (i < 2) {
      requests[i]->steps[0].append.reset();
      requests[i]->steps[0].attend->task.q =
          DenseRows(static_cast<const void*>(output_.data()), DType::kFloat32, 1, kDim);
    }
  }
  worker_.Execute({std::move(requests), clock_.Now()});
  EXPECT_TRUE(outcomes[0].ok()) << outcomes[0];
  EXPECT_TRUE(outcomes[1].ok()) << outcomes[1];
  EXPECT_EQ(ReasonOf(outcomes[2]), "KV_EXHAUSTED") << "the other two are in use";
  clock_.Advance(absl::Minutes(1));
  EXPECT_TRUE(Run(caches[2], 2, 0, 64).ok()) << "and now they are not";
}

TEST_F(SpillerTest, AFullHostLeavesWhatIsThere) {
  std::vector<std::shared_ptr<KvCache>> caches;
  for (int i = 0; i < 4; ++i) {
    caches.push_back(NewCache());
    ASSERT_TRUE(Run(caches[i], i, 0, 64).ok());
    clock_.Advance(absl::Minutes(1));
  }
  const auto fifth = NewCache();
  EXPECT_EQ(ReasonOf(Run(fifth, 5, 0, 64)), "KV_EXHAUSTED");
  caches[0].reset();
  EXPECT_TRUE(Run(fifth, 5, 0, 64).ok()) << "its place on the host is free again";
}

TEST_F(SpillerTest, ASessionThatWasSpilledOutlivesTheDevicesMemory) {
  const auto spilled = NewCache(), resident = NewCache(), other = NewCache();
  ASSERT_TRUE(Run(spilled, 1, 0, 64).ok());
  clock_.Advance(absl::Minutes(1));
  ASSERT_TRUE(Run(resident, 2, 0, 64).ok());
  ASSERT_TRUE(Run(other, 3, 0, 16).ok());
  ASSERT_TRUE(spilled->is_spilled());
  pages_.LoseAll();
  EXPECT_TRUE(resident->is_lost());
  EXPECT_FALSE(spilled->is_lost());
  EXPECT_EQ(ReasonOf(Run(resident, 2, 64, 65)), "SESSION_LOST");
  EXPECT_TRUE(Run(spilled, 1, 64, 65).ok());
  EXPECT_EQ(spilled->length(0), 65);
}

TEST_F(SpillerTest, RoomOnTheHostLetsSessionsBeMadeOnAFullDevice) {
  const auto first = NewCache(), second = NewCache();
  ASSERT_TRUE(Run(first, 1, 0, 64).ok());
  ASSERT_TRUE(Run(second, 2, 0, 64).ok());
  EXPECT_TRUE(factory_.Create(kGeometry, 1, /*expected_tokens=*/64).ok());
  EXPECT_EQ(factory_.Create(kGeometry, 1, /*expected_tokens=*/1000).status().code(),
            absl::StatusCode::kResourceExhausted)
      << "more than the device could ever hold";
}

}  // namespace
}  // namespace attention::server
