#include "client/internal/call/retry_loop.h"

#include <gmock/gmock.h>

#include <deque>
#include <thread>

#include "attention/client/errors.h"
#include "tests/unit/client/fake_timer.h"

namespace attention::client::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const RetryPolicy kPolicy = {.max_attempts = 5,
                             .initial_backoff = absl::Milliseconds(100),
                             .max_backoff = absl::Milliseconds(500),
                             .multiplier = 2,
                             .jitter = 0.5};
constexpr double kNoJitter = 0.5;  // the random number that leaves a back-off as it is

// Attempts that end as scripted, and what came of them.
class RetryLoopTest : public testing::Test {
 protected:
  ~RetryLoopTest() override { timer_->Close(); }

  void Run(std::deque<AttemptOutcome> script) {
    RunWithRetries(
        timer_, [this] { return random_; }, settings_,
        [this, script = std::make_shared<std::deque<AttemptOutcome>>(std::move(script))](
            int attempt, std::function<void(AttemptOutcome)> finished) {
          attempts_.push_back(attempt);
          AttemptOutcome outcome = script->front();
          script->pop_front();
          finished(std::move(outcome));
        },
        [this](absl::Status status) { results_.push_back(std::move(status)); });
  }

  std::shared_ptr<FakeTimer> timer_ = std::make_shared<FakeTimer>();
  double random_ = kNoJitter;
  RetrySettings settings_ = {.policy = kPolicy};
  std::vector<int> attempts_;
  std::vector<absl::Status> results_;
};

AttemptOutcome Unavailable() { return {absl::UnavailableError("down")}; }

TEST_F(RetryLoopTest, SuccessAtOnceNeedsNoTimer) {
  Run({{absl::OkStatus()}});
  EXPECT_THAT(results_, ElementsAre(absl::OkStatus()));
  EXPECT_EQ(timer_->num_actions(), 0u);
}

TEST_F(RetryLoopTest, BackoffGrowsToItsBound) {
  Run({Unavailable(), Unavailable(), Unavailable(), Unavailable(), {absl::OkStatus()}});
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(100));
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(200));
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(400));
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(500));
  EXPECT_THAT(attempts_, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(results_, ElementsAre(absl::OkStatus()));
}

TEST_F(RetryLoopTest, GivesUpAfterTheLastAttemptWithItsStatus) {
  settings_.policy.max_attempts = 2;
  Run({Unavailable(), {WithReason(absl::UnavailableError("draining"), kDraining)}});
  timer_->RunNext();
  ASSERT_EQ(results_.size(), 1u);
  EXPECT_EQ(results_[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(results_[0].message(), "draining (2 attempts)");
  EXPECT_EQ(ErrorReason(results_[0]), std::string(kDraining));
}

TEST_F(RetryLoopTest, OtherCodesAreNotRetried) {
  for (int code = 1; code <= static_cast<int>(absl::StatusCode::kUnauthenticated); ++code) {
    if (code == static_cast<int>(absl::StatusCode::kUnavailable)) continue;
    results_.clear();
    const absl::Status status(static_cast<absl::StatusCode>(code), "no");
    Run({{status}});
    EXPECT_THAT(results_, ElementsAre(status));
  }
  EXPECT_EQ(timer_->num_actions(), 0u);
}

TEST_F(RetryLoopTest, ServersDelayReplacesTheBackoff) {
  random_ = 0;
  Run({{WithRetryDelay(absl::ResourceExhaustedError("full"), absl::Seconds(3))},
       {absl::OkStatus()}});
  EXPECT_EQ(timer_->RunNext(), absl::Seconds(3));
  EXPECT_THAT(results_, ElementsAre(absl::OkStatus()));
}

TEST_F(RetryLoopTest, AttemptsThatShowedSomethingAreNotRetried) {
  Run({{.status = absl::UnavailableError("down"), .can_retry = false}});
  EXPECT_THAT(results_, ElementsAre(absl::UnavailableError("down")));
}

TEST_F(RetryLoopTest, DoesNotWaitPastTheDeadline) {
  settings_.deadline = timer_->Now() + absl::Milliseconds(250);
  Run({Unavailable(), Unavailable(), Unavailable()});
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(100));
  ASSERT_EQ(results_.size(), 1u);  // the next wait of 200 ms would end at 300 ms
  EXPECT_EQ(results_[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(results_[0].message()), HasSubstr("attempt 2; no time for another"));
  EXPECT_EQ(timer_->num_actions(), 0u);
}

TEST_F(RetryLoopTest, CancelEndsAWaitOnce) {
  std::stop_source source;
  settings_.cancellation = source.get_token();
  Run({Unavailable(), {absl::OkStatus()}});
  EXPECT_THAT(results_, testing::IsEmpty());
  source.request_stop();
  ASSERT_EQ(results_.size(), 1u);
  EXPECT_TRUE(absl::IsCancelled(results_[0]));
  timer_->RunNext();
  EXPECT_EQ(results_.size(), 1u);
  EXPECT_THAT(attempts_, ElementsAre(1));
}

TEST_F(RetryLoopTest, CancelledBeforeTheWaitEndsItAtOnce) {
  std::stop_source source;
  settings_.cancellation = source.get_token();
  source.request_stop();
  Run({Unavailable(), {absl::OkStatus()}});
  ASSERT_EQ(results_.size(), 1u);
  EXPECT_TRUE(absl::IsCancelled(results_[0]));
  EXPECT_EQ(timer_->num_actions(), 0u);
}

TEST_F(RetryLoopTest, CancelAfterTheWaitIsTheAttemptsBusiness) {
  std::stop_source source;
  settings_.cancellation = source.get_token();
  Run({Unavailable(), {absl::OkStatus()}});
  timer_->RunNext();
  source.request_stop();
  EXPECT_THAT(results_, ElementsAre(absl::OkStatus()));
}

TEST_F(RetryLoopTest, CancelRacingTheTimerFinishesOnce) {
  for (int round = 0; round < 200; ++round) {
    results_.clear();
    std::stop_source source;
    settings_.cancellation = source.get_token();
    Run({Unavailable(), {absl::OkStatus()}});
    std::thread canceller([&source] { source.request_stop(); });
    timer_->RunNext();
    canceller.join();
    ASSERT_EQ(results_.size(), 1u);
  }
}

TEST(NextDelayTest, JitterScalesBothWays) {
  const absl::Status status = absl::UnavailableError("down");
  EXPECT_EQ(NextDelay(kPolicy, 1, status, 0), absl::Milliseconds(50));
  EXPECT_EQ(NextDelay(kPolicy, 1, status, 0.75), absl::Milliseconds(125));
  EXPECT_EQ(NextDelay(kPolicy, 4, status, 0), absl::Milliseconds(250));
}

TEST(NextDelayTest, JitterOnlyLengthensTheServersDelay) {
  const absl::Status status = WithRetryDelay(absl::UnavailableError("down"), absl::Seconds(4));
  EXPECT_EQ(NextDelay(kPolicy, 1, status, 0), absl::Seconds(4));
  EXPECT_EQ(NextDelay(kPolicy, 1, status, 0.5), absl::Seconds(5));
}

TEST(NextDelayTest, NoneOnceTheAttemptsAreUsedUp) {
  EXPECT_EQ(NextDelay(kPolicy, 5, absl::UnavailableError("down"), 0), std::nullopt);
  EXPECT_EQ(NextDelay(RetryPolicy::None(), 1, absl::UnavailableError("down"), 0), std::nullopt);
}

TEST(NextDelayTest, ManyAttemptsDoNotOverflow) {
  RetryPolicy policy = kPolicy;
  policy.max_attempts = 1 << 30;
  EXPECT_EQ(NextDelay(policy, 1 << 20, absl::UnavailableError("down"), kNoJitter),
            policy.max_backoff);
}

TEST(NextDelayTest, TheDefaultsOutlastAServerThatRestartsInTwoSeconds) {
  const RetryPolicy policy;
  absl::Duration shortest;
  for (int attempt = 1; attempt < policy.max_attempts; ++attempt) {
    shortest += *NextDelay(policy, attempt, absl::UnavailableError("refused"), /*random=*/0);
  }
  // It takes the client up to 0.6 s to try to connect again.
  EXPECT_GE(shortest, absl::Seconds(2.6));
}

}  // namespace
}  // namespace attention::client::internal
