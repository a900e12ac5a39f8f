// The one place where calls are tried again. Knows neither gRPC nor messages: an attempt is a
// function, time is a Timer, chance is a function.
#ifndef ATTENTION_CLIENT_INTERNAL_CALL_RETRY_LOOP_H_
#define ATTENTION_CLIENT_INTERNAL_CALL_RETRY_LOOP_H_

#include <functional>
#include <memory>
#include <optional>
#include <stop_token>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "attention/client/retry_policy.h"
#include "client/internal/call/timer.h"

namespace attention::client::internal {

// Uniform in [0, 1). Thread-safe.
using RandomSource = std::function<double()>;

struct AttemptOutcome {
  absl::Status status;
  // False when trying again could show the caller something twice.
  bool can_retry = true;
};

// Starts one attempt, numbered from 1, and calls the function it is given once with the outcome,
// from any thread or at once.
using Attempt = std::function<void(int attempt, std::function<void(AttemptOutcome)>)>;

struct RetrySettings {
  RetryPolicy policy = {};
  // Of the call as a whole; absl::InfiniteFuture() for none.
  absl::Time deadline = absl::InfiniteFuture();
  // Ends a wait between attempts. Ending a running attempt is the attempt's own business.
  std::stop_token cancellation = {};
};

// The wait before attempt number `failed_attempt` + 1, or nullopt when there is to be none: the
// status is not one to retry, or the attempts are used up. `random` is uniform in [0, 1).
std::optional<absl::Duration> NextDelay(const RetryPolicy& policy, int failed_attempt,
                                        const absl::Status& status, double random);

// Runs attempts until one succeeds or none is to follow, then calls `done` once with the last one's
// status (CANCELLED if cancelled while waiting). Nothing blocks; what runs keeps itself alive.
void RunWithRetries(std::shared_ptr<Timer> timer, RandomSource random, RetrySettings settings,
                    Attempt attempt, std::function<void(absl::Status)> done);

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_CALL_RETRY_LOOP_H_
