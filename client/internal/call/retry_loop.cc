#include "client/internal/call/retry_loop.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/convert/error_details.h"

namespace attention::client::internal {
namespace {

class RetryLoop : public std::enable_shared_from_this<RetryLoop> {
 public:
  RetryLoop(std::shared_ptr<Timer> timer, RandomSource random, RetrySettings settings,
            Attempt attempt, std::function<void(absl::Status)> done)
      : timer_(std::move(timer)),
        random_(std::move(random)),
        settings_(std::move(settings)),
        attempt_(std::move(attempt)),
        done_(std::move(done)) {}

  void StartAttempt() {
    ++attempts_;
    attempt_(attempts_, [self = shared_from_this()](const AttemptOutcome& outcome) {
      self->OnOutcome(outcome);
    });
  }

 private:
  void OnOutcome(const AttemptOutcome& outcome) {
    const absl::Status& status = outcome.status;
    std::optional<absl::Duration> delay;
    if (outcome.can_retry) delay = NextDelay(settings_.policy, attempts_, status, random_());
    if (!delay.has_value()) {
      done_(attempts_ > 1 && !status.ok() ? Annotate(status, absl::StrCat(attempts_, " attempts"))
                                          : status);
      return;
    }
    const absl::Time when = timer_->Now() + *delay;
    if (when >= settings_.deadline) {
      // Waiting for a deadline that is certain to strike would only hide this answer.
      done_(Annotate(status, absl::StrCat("attempt ", attempts_, "; no time for another in ",
                                          absl::FormatDuration(*delay))));
      return;
    }
    WaitUntil(when);
  }

  void WaitUntil(absl::Time when) {
    is_waiting_ = true;
    // Registered before the timer, which may ring on another thread at once.
    if (settings_.cancellation.stop_possible()) {
      on_cancel_.emplace(settings_.cancellation, [this] { OnCancelled(); });
    }
    if (!is_waiting_) return;  // cancelled already
    timer_->RunAt(when, [self = shared_from_this()] { self->OnTimer(); });
  }

  // Whichever of OnTimer and OnCancelled ends the wait goes on; the other does nothing.
  void OnTimer() {
    if (!is_waiting_.exchange(false)) return;
    on_cancel_.reset();
    StartAttempt();
  }

  void OnCancelled() {
    // Empty when the loop is being destroyed, whose destructor waits for this function.
    const std::shared_ptr<RetryLoop> self = weak_from_this().lock();
    if (self == nullptr || !is_waiting_.exchange(false)) return;
    done_(absl::CancelledError(absl::StrCat("cancelled between attempts, after ", attempts_)));
  }

  const std::shared_ptr<Timer> timer_;
  const RandomSource random_;
  const RetrySettings settings_;
  const Attempt attempt_;
  const std::function<void(absl::Status)> done_;
  int attempts_ = 0;  // one attempt or wait exists at a time, which orders the accesses
  std::atomic<bool> is_waiting_ = false;
  std::optional<std::stop_callback<std::function<void()>>> on_cancel_;
};

}  // namespace

std::optional<absl::Duration> NextDelay(const RetryPolicy& policy, int failed_attempt,
                                        const absl::Status& status, double random) {
  if (failed_attempt >= policy.max_attempts) return std::nullopt;
  const std::optional<absl::Duration> asked_for = RetryDelayOf(status);
  const bool is_unavailable = absl::IsUnavailable(status);
  if (!is_unavailable && !(absl::IsResourceExhausted(status) && asked_for.has_value())) {
    return std::nullopt;
  }
  if (asked_for.has_value()) return *asked_for * (1 + policy.jitter * random);
  // Bounded, as zero times infinity would be no duration.
  const double growth = std::min(std::pow(policy.multiplier, failed_attempt - 1), 0x1p60);
  const absl::Duration backoff = std::min(policy.initial_backoff * growth, policy.max_backoff);
  return backoff * (1 + policy.jitter * (2 * random - 1));
}

void RunWithRetries(std::shared_ptr<Timer> timer, RandomSource random, RetrySettings settings,
                    Attempt attempt, std::function<void(absl::Status)> done) {
  std::make_shared<RetryLoop>(std::move(timer), std::move(random), std::move(settings),
                              std::move(attempt), std::move(done))
      ->StartAttempt();
}

}  // namespace attention::client::internal
