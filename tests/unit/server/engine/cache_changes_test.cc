// Changes of caches on their way through a worker: whom they wait for, and how they fail.
#include "server/engine/cache_changes.h"

#include <gmock/gmock.h>

#include <atomic>
#include <deque>
#include <optional>
#include <vector>

#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "server/engine/worker.h"
#include "tests/support/failing_new.h"
#include "tests/support/fake_clock.h"
#include "tests/support/faulty_backend.h"
#include "tests/unit/server/engine/one_head_step.h"
#include "tests/unit/server/engine/run_alone.h"

namespace attention::server {
namespace {

using ::attention::testing::FailingAllocation;
using ::attention::testing::Faults;
using ::attention::testing::FaultyBackend;
using ::attention::testing::OneHeadStep;
using ::testing::HasSubstr;

constexpr int kDim = 4;
constexpr std::size_t kChunk = std::size_t{1} << 12;

class CacheChangesTest : public ::testing::Test {
 protected:
  std::shared_ptr<KvCache> NewCache() {
    return *factory_.Create({1, kDim, kDim, DType::kFloat32}, 1, 0);
  }
  // Appends tokens full of the value, and attends with the first of them over all.
  SessionStep Step(const std::shared_ptr<KvCache>& cache, std::int64_t position,
                   std::int64_t num_tokens, float value) {
    std::vector<float>& rows = rows_.emplace_back(num_tokens * kDim, value);
    std::vector<float>& output = rows_.emplace_back(kDim);
    SessionStep step =
        OneHeadStep(cache, position, num_tokens, 1, kDim, rows.data(), output.data());
    step.attend->task.params.softmax_scale = 0;  // the output is the mean of the values
    return step;
  }
  static float OutputOf(const SessionStep& step) {
    return *static_cast<const float*>(step.attend->task.o.data);
  }

  CacheChange Fork(const std::shared_ptr<KvCache>& cache, std::optional<std::int64_t> length,
                   int num_copies = 1) {
    CacheChange change;
    change.kind = CacheChange::Kind::kFork;
    change.caches.push_back(cache);
    change.length = length;
    for (int i = 0; i < num_copies; ++i) change.copies.push_back(factory_.CreateLike(*cache));
    return change;
  }
  CacheChange Truncate(const std::shared_ptr<KvCache>& cache, std::int64_t length) {
    CacheChange change;
    change.kind = CacheChange::Kind::kTruncate;
    change.caches.push_back(cache);
    change.length = length;
    return change;
  }

  CacheChange Attach(const std::shared_ptr<KvCache>& cache, std::uint64_t writer) {
    CacheChange change;
    change.kind = CacheChange::Kind::kAttach;
    change.caches.push_back(cache);
    change.writers.push_back(writer);
    return change;
  }

  absl::Status Execute(std::unique_ptr<AttentionRequest> request) {
    const AttentionResult answer = RunAlone(worker_, clock_, std::move(request));
    clock_.Advance(absl::Minutes(1));
    if (!answer.status.ok() || answer.steps.empty()) return answer.status;
    return answer.steps[0].status;
  }
  absl::Status Run(const SessionStep& step) {
    auto request = std::make_unique<AttentionRequest>();
    request->steps.push_back(step);
    return Execute(std::move(request));
  }
  absl::Status Run(CacheChange change) {
    auto request = std::make_unique<AttentionRequest>();
    request->change = std::move(change);
    return Execute(std::move(request));
  }
  static std::string ReasonOf(const absl::Status& status) {
    const auto detail = GetErrorDetail(status);
    return detail.has_value() ? std::string(detail->reason) : std::string();
  }

  FakeClock clock_;
  ServerMetrics metrics_;
  Faults faults_;
  std::unique_ptr<AttentionBackend> backend_ = std::make_unique<FaultyBackend>(faults_);
  PagePool pages_{backend_->memory(), 2 * kChunk, kChunk};
  PagePool host_pages_{backend_->memory(), 4 * kChunk, kChunk};
  CacheList caches_;
  Spiller spiller_{*backend_, pages_, host_pages_, caches_, absl::Seconds(10), clock_, metrics_};
  Worker worker_{*backend_, clock_, metrics_, {.spiller = &spiller_}};
  KvCacheFactory factory_{{{*backend_, pages_, &caches_, &host_pages_}}, /*page_size=*/16};
  std::deque<std::vector<float>> rows_;
};

TEST_F(CacheChangesTest, AForkGoesOnFromTheLengthThatItWasMadeAt) {
  const auto cache = NewCache();
  ASSERT_TRUE(Run(Step(cache, 0, 20, 1)).ok());
  const CacheChange fork = Fork(cache, 10, 2);
  ASSERT_TRUE(Run(fork).ok());
  const SessionStep first = Step(fork.copies[0], 10, 10, 3),
                    second = Step(fork.copies[1], 10, 30, 5);
  ASSERT_TRUE(Run(first).ok());
  ASSERT_TRUE(Run(second).ok());
  EXPECT_FLOAT_EQ(OutputOf(first), 2);
  EXPECT_FLOAT_EQ(OutputOf(second), 4);
  const SessionStep own = Step(cache, 20, 20, 3);
  ASSERT_TRUE(Run(own).ok());
  EXPECT_FLOAT_EQ(OutputOf(own), 2);
}

TEST_F(CacheChangesTest, WithoutALengthAForkHasTheCommittedOne) {
  const auto cache = *factory_.Create({1, kDim, kDim, DType::kFloat32}, 2, 0);
  SessionStep step = Step(cache, 0, 9, 1);
  ASSERT_TRUE(Run(step).ok());
  step = Step(cache, 0, 7, 1);
  step.layer = 1;
  ASSERT_TRUE(Run(step).ok());
  const CacheChange fork = Fork(cache, std::nullopt);
  ASSERT_TRUE(Run(fork).ok());
  EXPECT_EQ(fork.copies[0]->length(0), 7);
}

TEST_F(CacheChangesTest, AfterATruncationOtherRowsComeInPlaceOfTheDrafts) {
  const auto cache = NewCache();
  ASSERT_TRUE(Run(Step(cache, 0, 9, 1)).ok());
  ASSERT_TRUE(Run(Step(cache, 9, 3, 7)).ok());
  const SessionStep right = Step(cache, 9, 1, 11);
  EXPECT_EQ(ReasonOf(Run(right)), "POSITION_MISMATCH");
  ASSERT_TRUE(Run(Truncate(cache, 9)).ok());
  ASSERT_TRUE(Run(Truncate(cache, 9)).ok()) << "as often as it is asked for";
  ASSERT_TRUE(Run(right).ok());
  EXPECT_FLOAT_EQ(OutputOf(right), 2);
}

TEST_F(CacheChangesTest, AnotherWriterFencesTheOneBeforeAndNeedsNoPages) {
  const auto cache = NewCache(), other = NewCache();
  ASSERT_TRUE(Run(Step(cache, 0, 200, 1)).ok());
  ASSERT_TRUE(Run(Step(other, 0, 200, 1)).ok());
  ASSERT_TRUE(cache->is_spilled()) << "the other one has taken all pages";
  ASSERT_TRUE(Run(Attach(cache, 2)).ok());
  EXPECT_TRUE(cache->is_spilled());
  EXPECT_EQ(ReasonOf(Run(Attach(cache, 1))), "FENCED") << "it comes too late";
  SessionStep step = Step(cache, 200, 1, 1);
  step.writer = 1;
  EXPECT_EQ(ReasonOf(Run(step)), "FENCED");
  CacheChange truncation = Truncate(cache, 3);
  truncation.writers = {1};
  EXPECT_EQ(ReasonOf(Run(truncation)), "FENCED");
  EXPECT_EQ(cache->length(0), 200);
  step.writer = 2;
  EXPECT_TRUE(Run(step).ok());
}

TEST_F(CacheChangesTest, ALengthBeyondTheCommittedOneIsRefusedByBoth) {
  const auto cache = NewCache();
  ASSERT_TRUE(Run(Step(cache, 0, 12, 1)).ok());
  for (const absl::Status& status : {Run(Fork(cache, 13)), Run(Truncate(cache, 13))}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(status), "POSITION_MISMATCH");
    EXPECT_EQ(GetErrorDetail(status)->metadata.at("actual_position"), "12");
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("length is 13, expected at most the committed length 12"));
  }
  EXPECT_EQ(cache->length(0), 12);
}

TEST_F(CacheChangesTest, AReorderThatIsRepeatedIsMadeOnce) {
  const auto one = NewCache(), two = NewCache();
  ASSERT_TRUE(Run(Step(one, 0, 3, 1)).ok());
  ASSERT_TRUE(Run(Step(two, 0, 5, 2)).ok());
  CacheChange swap;
  swap.kind = CacheChange::Kind::kReorder;
  for (const auto& cache : {one, two}) swap.caches.push_back(cache);
  for (const std::size_t source : {1, 0}) swap.sources.push_back(source);
  swap.change_id = 77;
  ASSERT_TRUE(Run(swap).ok());
  ASSERT_TRUE(Run(swap).ok());
  EXPECT_EQ(one->length(0), 5);
  EXPECT_EQ(two->length(0), 3);
  swap.change_id = 78;
  ASSERT_TRUE(Run(swap).ok());
  EXPECT_EQ(one->length(0), 3) << "another one";
}

TEST_F(CacheChangesTest, ASpilledCacheComesBackFirst) {
  const auto cache = NewCache(), other = NewCache();
  ASSERT_TRUE(Run(Step(cache, 0, 200, 1)).ok());
  ASSERT_TRUE(Run(Step(other, 0, 200, 2)).ok());
  ASSERT_TRUE(cache->is_spilled());
  const CacheChange fork = Fork(cache, 199);
  ASSERT_TRUE(Run(fork).ok());
  EXPECT_FALSE(cache->is_spilled());
  EXPECT_TRUE(other->is_spilled());
  const SessionStep step = Step(fork.copies[0], 199, 1, 1);
  ASSERT_TRUE(Run(step).ok());
  EXPECT_FLOAT_EQ(OutputOf(step), 1);
}

TEST_F(CacheChangesTest, ALostSessionIsToldAndItsCopiesStayEmpty) {
  const auto cache = NewCache();
  ASSERT_TRUE(Run(Step(cache, 0, 20, 1)).ok());
  void* const lost = cache->View(0).pages[0];  // at the start of its chunk
  const CacheChange fork = Fork(cache, 20);
  pages_.LoseAll();
  EXPECT_EQ(ReasonOf(Run(fork)), "SESSION_LOST");
  EXPECT_EQ(ReasonOf(Run(Truncate(cache, 3))), "SESSION_LOST");
  EXPECT_EQ(fork.copies[0]->length(0), 0);
  backend_->memory().Free(lost, kChunk);
}

TEST_F(CacheChangesTest, ADeviceThatDoesNotRunMakesChangesAllTheSame) {
  const auto cache = NewCache();
  ASSERT_TRUE(Run(Step(cache, 0, 20, 1)).ok());
  faults_.run_status = absl::InternalError("broken");
  ASSERT_TRUE(Run(Fork(cache, 20)).ok());
  ASSERT_TRUE(Run(Truncate(cache, 3)).ok());
  EXPECT_EQ(cache->length(0), 3);
}

TEST_F(CacheChangesTest, AForkOfSoManyCopiesThatItIsLongIsMadeInOneSlice) {
  const auto cache = NewCache();
  ASSERT_TRUE(Run(Step(cache, 0, 20, 1)).ok());
  auto request = std::make_unique<AttentionRequest>();
  request->change = Fork(cache, 20, 100);
  const std::vector<std::shared_ptr<KvCache>> copies = request->change->copies;
  absl::Status status = absl::UnknownError("not answered");
  request->completion = [&](std::unique_ptr<AttentionRequest>, AttentionResult result) {
    status = result.status;
  };
  const std::atomic<bool> yields{true};
  const auto sliced = worker_.BeginSliced(std::move(request), clock_.Now());
  EXPECT_TRUE(sliced->RunSlice(yields));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(sliced->progress(), 1);
  for (const auto& copy : copies) EXPECT_EQ(copy->length(0), 20);
}

TEST_F(CacheChangesTest, WhenMemoryIsOutAChangeIsAnsweredAndNothingIsLost) {
  for (int n = 1;; ++n) {
    SCOPED_TRACE(n);
    const auto cache = NewCache();
    ASSERT_TRUE(Run(Step(cache, 0, 20, 1)).ok());
    auto request = std::make_unique<AttentionRequest>();
    request->change = Fork(cache, 18, 2);
    const std::vector<std::shared_ptr<KvCache>> copies = request->change->copies;
    int num_answers = 0;
    absl::Status status;
    request->completion = [&](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      ++num_answers;
      status = result.status;
    };
    std::vector<std::unique_ptr<AttentionRequest>> requests;
    requests.push_back(std::move(request));
    bool has_failed = false;
    {
      FailingAllocation failing(n);
      worker_.Execute({std::move(requests), clock_.Now()});
      has_failed = failing.has_failed();
    }
    ASSERT_EQ(num_answers, 1);
    EXPECT_EQ(cache->length(0), 20);
    const SessionStep step = Step(cache, 20, 20, 3);
    ASSERT_TRUE(Run(step).ok());
    EXPECT_FLOAT_EQ(OutputOf(step), 2);
    if (!has_failed) break;
  }
  EXPECT_EQ(pages_.used_bytes() + host_pages_.used_bytes(), 0u);
}

}  // namespace
}  // namespace attention::server
