// How often and how fast a failed call is tried again.
//
// Tried again are UNAVAILABLE, and RESOURCE_EXHAUSTED when the server said when to come back
// (google.rpc.RetryInfo). Nothing else is: the other codes either will not change or may not be
// asked twice. Every call of this API is safe to retry. The defaults go on for four seconds, within
// the call's deadline: a server that restarts in two is not noticed.
#pragma once

#include "absl/time/time.h"

namespace attention::client {

struct RetryPolicy {
  // The first try included. 1: never retry.
  int max_attempts = 9;
  // Wait before the second attempt; each further wait is `multiplier` times longer, up to
  // max_backoff.
  absl::Duration initial_backoff = absl::Milliseconds(50);
  absl::Duration max_backoff = absl::Seconds(1);
  double multiplier = 2;
  // Each wait is scaled by a random factor from [1 - jitter, 1 + jitter], so that clients that
  // failed together do not return together. 0 to 1. A delay that the server asked for replaces the
  // back-off and is only ever lengthened: its factor is from [1, 1 + jitter].
  double jitter = 0.2;

  static RetryPolicy None() { return {.max_attempts = 1}; }
};

}  // namespace attention::client
