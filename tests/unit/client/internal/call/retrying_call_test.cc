#include "client/internal/call/retrying_call.h"

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

// A call whose attempts end as scripted.
class ScriptedCall final : public RetryingCall {
 public:
  ScriptedCall(std::shared_ptr<Timer> timer, RandomSource random, const CallSettings& settings,
               std::deque<AttemptOutcome> script, std::vector<int>& attempts,
               std::vector<absl::Status>& results)
      : RetryingCall(std::move(timer), std::move(random), settings),
        script_(std::move(script)),
        attempts_(attempts),
        results_(results) {}

 private:
  void StartAttempt(int attempt) override {
    attempts_.push_back(attempt);
    const AttemptOutcome outcome = script_.front();
    script_.pop_front();
    OnOutcome(outcome);
  }
  void OnDone(const absl::Status& status) override { results_.push_back(status); }

  std::deque<AttemptOutcome> script_;
  std::vector<int>& attempts_;
  std::vector<absl::Status>& results_;
};

// The attempts of scripted calls, and the results.
class RetryingCallTest : public testing::Test {
 protected:
  ~RetryingCallTest() override { timer_->Close(); }

  void Run(std::deque<AttemptOutcome> script) {
    std::make_shared<ScriptedCall>(
        timer_, [this] { return random_; }, settings_, std::move(script), attempts_, results_)
        ->Start();
  }

  std::shared_ptr<FakeTimer> timer_ = std::make_shared<FakeTimer>();
  double random_ = kNoJitter;
  CallSettings settings_ = {.retry_policy = kPolicy};
  std::vector<int> attempts_;
  std::vector<absl::Status> results_;
};

AttemptOutcome Unavailable() { return {absl::UnavailableError("down")}; }

TEST_F(RetryingCallTest, SuccessAtOnceNeedsNoTimer) {
  Run({{absl::OkStatus()}});
  EXPECT_THAT(results_, ElementsAre(absl::OkStatus()));
  EXPECT_EQ(timer_->num_actions(), 0u);
}

TEST_F(RetryingCallTest, BackoffGrowsToItsBound) {
  Run({Unavailable(), Unavailable(), Unavailable(), Unavailable(), {absl::OkStatus()}});
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(100));
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(200));
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(400));
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(500));
  EXPECT_THAT(attempts_, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(results_, ElementsAre(absl::OkStatus()));
}

TEST_F(RetryingCallTest, GivesUpAfterTheLastAttemptWithItsStatus) {
  settings_.retry_policy.max_attempts = 2;
  Run({Unavailable(), {WithReason(absl::UnavailableError("draining"), kDraining)}});
  timer_->RunNext();
  ASSERT_EQ(results_.size(), 1u);
  EXPECT_EQ(results_[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(results_[0].message(), "draining (2 attempts)");
  EXPECT_EQ(ErrorReason(results_[0]), std::string(kDraining));
}

TEST_F(RetryingCallTest, OtherCodesAreNotRetried) {
  for (int code = 1; code <= static_cast<int>(absl::StatusCode::kUnauthenticated); ++code) {
    if (code == static_cast<int>(absl::StatusCode::kUnavailable)) continue;
    results_.clear();
    const absl::Status status(static_cast<absl::StatusCode>(code), "no");
    Run({{status}});
    EXPECT_THAT(results_, ElementsAre(status));
  }
  EXPECT_EQ(timer_->num_actions(), 0u);
}

TEST_F(RetryingCallTest, ServersDelayReplacesTheBackoff) {
  random_ = 0;
  Run({{WithRetryDelay(absl::ResourceExhaustedError("full"), absl::Seconds(3))},
       {absl::OkStatus()}});
  EXPECT_EQ(timer_->RunNext(), absl::Seconds(3));
  EXPECT_THAT(results_, ElementsAre(absl::OkStatus()));
}

TEST_F(RetryingCallTest, AttemptsThatShowedSomethingAreNotRetried) {
  Run({{.status = absl::UnavailableError("down"), .can_retry = false}});
  EXPECT_THAT(results_, ElementsAre(absl::UnavailableError("down")));
}

TEST_F(RetryingCallTest, DoesNotWaitPastTheDeadline) {
  settings_.deadline = timer_->Now() + absl::Milliseconds(250);
  Run({Unavailable(), Unavailable(), Unavailable()});
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(100));
  ASSERT_EQ(results_.size(), 1u);  // the next wait of 200 ms would end at 300 ms
  EXPECT_EQ(results_[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(results_[0].message()), HasSubstr("attempt 2; no time for another"));
  EXPECT_EQ(timer_->num_actions(), 0u);
}

TEST_F(RetryingCallTest, CancelEndsAWaitOnce) {
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

TEST_F(RetryingCallTest, CancelledBeforeTheWaitEndsItAtOnce) {
  std::stop_source source;
  settings_.cancellation = source.get_token();
  source.request_stop();
  Run({Unavailable(), {absl::OkStatus()}});
  ASSERT_EQ(results_.size(), 1u);
  EXPECT_TRUE(absl::IsCancelled(results_[0]));
  EXPECT_EQ(timer_->num_actions(), 0u);
}

TEST_F(RetryingCallTest, CancelAfterTheWaitIsTheAttemptsBusiness) {
  std::stop_source source;
  settings_.cancellation = source.get_token();
  Run({Unavailable(), {absl::OkStatus()}});
  timer_->RunNext();
  source.request_stop();
  EXPECT_THAT(results_, ElementsAre(absl::OkStatus()));
}

TEST_F(RetryingCallTest, CancelRacingTheTimerFinishesOnce) {
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
