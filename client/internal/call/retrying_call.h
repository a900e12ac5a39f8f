// A call that is tried again where that may help: the one place where that is decided. Knows
// neither gRPC nor messages: time is a Timer, chance is a function, the attempts are a subclass's.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "attention/client/retry_policy.h"
#include "client/internal/call/call_settings.h"
#include "client/internal/call/timer.h"

namespace attention::client::internal {

// Uniform in [0, 1). Thread-safe.
using RandomSource = std::function<double()>;

struct AttemptOutcome {
  absl::Status status;
  // False when trying again could show the caller something twice.
  bool can_retry = true;
};

// The wait before attempt number `failed_attempt` + 1, or nullopt when there is to be none: the
// status is not one to retry, or the attempts are used up. `random` is uniform in [0, 1).
std::optional<absl::Duration> NextDelay(const RetryPolicy& policy, int failed_attempt,
                                        const absl::Status& status, double random);

// Nothing blocks. Owned by shared pointers: the attempt, or the wait, that is under way holds one.
class RetryingCall : public std::enable_shared_from_this<RetryingCall> {
 public:
  RetryingCall(std::shared_ptr<Timer> timer, RandomSource random, CallSettings settings);
  virtual ~RetryingCall() = default;
  RetryingCall(const RetryingCall&) = delete;
  RetryingCall& operator=(const RetryingCall&) = delete;

  // Starts the first attempt. To be called once.
  void Start();

  // To be called once for each attempt, from any thread.
  void OnOutcome(const AttemptOutcome& outcome);

 protected:
  const CallSettings& settings() const { return settings_; }

 private:
  // Starts an attempt, numbered from 1, of which OnOutcome is to hear, possibly at once. Ending a
  // running attempt on cancellation is the attempt's own business.
  virtual void StartAttempt(int attempt) = 0;
  // Called once, when an attempt has succeeded or none is to follow, with the last one's status:
  // CANCELLED if cancelled between two.
  virtual void OnDone(const absl::Status& status) = 0;

  void StartNextAttempt();
  void WaitUntil(absl::Time when);
  void OnTimer();
  void OnCancelled();

  const std::shared_ptr<Timer> timer_;
  const RandomSource random_;
  const CallSettings settings_;
  int attempts_ = 0;  // one attempt or wait exists at a time, which orders the accesses
  std::atomic<bool> is_waiting_ = false;
  std::optional<std::stop_callback<std::function<void()>>> on_cancel_;
};

}  // namespace attention::client::internal
