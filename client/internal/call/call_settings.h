// The options of one call, all its attempts together.
#pragma once

#include <stop_token>
#include <string>

#include "absl/time/time.h"
#include "attention/client/options.h"
#include "attention/client/retry_policy.h"

namespace attention::client::internal {

// ClientOptions and CallOptions resolved.
struct CallSettings {
  std::string tenant = {};
  std::string request_id = {};
  // The deadline of all attempts together; absl::InfiniteFuture() for none.
  absl::Time deadline = absl::InfiniteFuture();
  std::stop_token cancellation = {};
  RetryPolicy retry_policy = {};
  // The first attempt may run on the thread that starts it.
  bool may_block = false;
};

// `default_timeout` counts when the call sets neither timeout nor deadline.
CallSettings ResolveSettings(const ClientOptions& client, const CallOptions& call, absl::Time now,
                             absl::Duration default_timeout);

// 128 random bits in hexadecimal: no two calls draw the same. Not a secret.
std::string NewUniqueId();

}  // namespace attention::client::internal
