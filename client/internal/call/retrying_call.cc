#include "client/internal/call/retrying_call.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/convert/error_details.h"

namespace attention::client::internal {

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

RetryingCall::RetryingCall(std::shared_ptr<Timer> timer, RandomSource random, CallSettings settings)
    : timer_(std::move(timer)), random_(std::move(random)), settings_(std::move(settings)) {}

void RetryingCall::Start() { StartNextAttempt(); }

void RetryingCall::StartNextAttempt() { StartAttempt(++attempts_); }

void RetryingCall::OnOutcome(const AttemptOutcome& outcome) {
  const absl::Status& status = outcome.status;
  std::optional<absl::Duration> delay;
  if (outcome.can_retry) delay = NextDelay(settings_.retry_policy, attempts_, status, random_());
  if (!delay.has_value()) {
    OnDone(attempts_ > 1 && !status.ok() ? Annotate(status, absl::StrCat(attempts_, " attempts"))
                                         : status);
    return;
  }
  const absl::Time when = timer_->Now() + *delay;
  if (when >= settings_.deadline) {
    // Waiting for a deadline that is certain to strike would only hide this answer.
    OnDone(Annotate(status, absl::StrCat("attempt ", attempts_, "; no time for another in ",
                                         absl::FormatDuration(*delay))));
    return;
  }
  WaitUntil(when);
}

void RetryingCall::WaitUntil(absl::Time when) {
  is_waiting_ = true;
  // Registered before the timer, which may ring on another thread at once.
  if (settings_.cancellation.stop_possible()) {
    on_cancel_.emplace(settings_.cancellation, [this] { OnCancelled(); });
  }
  if (!is_waiting_) return;  // cancelled already
  timer_->RunAt(when, [self = shared_from_this()] { self->OnTimer(); });
}

// OnTimer or OnCancelled ends the wait, and goes on; the other then does nothing.
void RetryingCall::OnTimer() {
  if (!is_waiting_.exchange(false)) return;
  on_cancel_.reset();
  StartNextAttempt();
}

void RetryingCall::OnCancelled() {
  // Empty when the call is being destroyed, whose destructor waits for this function.
  const std::shared_ptr<RetryingCall> self = weak_from_this().lock();
  if (self == nullptr || !is_waiting_.exchange(false)) return;
  OnDone(absl::CancelledError(absl::StrCat("cancelled between attempts, after ", attempts_)));
}

}  // namespace attention::client::internal
