// The options of one call, all its attempts together.
#pragma once

#include <memory>
#include <stop_token>
#include <string>

#include "absl/time/time.h"
#include "attention/client/options.h"
#include "attention/client/retry_policy.h"
#include "client/internal/credentials/identity.h"

namespace attention::client::internal {

// CallOptions resolved.
struct CallSettings {
  // Null in tests: no metadata of the client's.
  std::shared_ptr<const Identity> identity = {};
  std::string request_id = {};
  // The deadline of all attempts together; absl::InfiniteFuture() for none.
  absl::Time deadline = absl::InfiniteFuture();
  std::stop_token cancellation = {};
  RetryPolicy retry_policy = {};
  // The first attempt may run on the thread that starts it.
  bool may_block = false;
};

// The deadline of a call that begins now; `default_timeout` counts when it sets neither timeout nor
// deadline.
absl::Time DeadlineOf(const CallOptions& call, absl::Time now, absl::Duration default_timeout);

// Sixteen digits that no two calls draw the same.
std::string NewRequestId();

// 128 random bits in hexadecimal: no two calls draw the same. Not a secret.
std::string NewUniqueId();

}  // namespace attention::client::internal
