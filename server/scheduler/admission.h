// Decides whether a request may join the queue: a pure function of what is queued, the limits and
// the measured rate.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/scheduler/work_queue.h"

namespace attention::server {

struct QueueLimits {
  std::int64_t max_requests = 0;
  std::int64_t max_bytes = 0;
};

// The state of the queue that admission looks at.
struct QueueView {
  QueueLoad all;
  QueueLoad tenant;
  // The share of the device's time that the tenant would get if everybody who has work went on.
  double tenant_share = 1;
  // Estimated work that the device does in a second of computing; 0: not measured yet.
  double work_rate = 0;
};

// The longest that a request of the tenant that joins now waits for its turn: until all that is
// queued is done, or until the tenant's own is at its share, whichever comes first. Zero while the
// rate is unknown.
absl::Duration ExpectedWait(const QueueView& view);

// RESOURCE_EXHAUSTED QUEUE_FULL, with the time to work off what is in the way as the retry delay
// (1 ms to 10 s):
//   when requests or bytes are at their limit, or at the tenant's share of it (HasRoom);
//   when its turn cannot come before its deadline: better told now than after the wait.
// INVALID_ARGUMENT when it is larger than the limit of bytes: it would not fit an empty queue.
absl::Status CheckAdmission(const QueueView& view, const QueueLimits& limits, std::int64_t bytes,
                            absl::Duration until_deadline);

// RESOURCE_EXHAUSTED QUOTA_EXCEEDED when the tenant may not have so many bytes more in the queue,
// of which `held` are its own; with the retry delay, unless they would not fit an empty one either.
absl::Status CheckTenantBytes(const std::string& tenant, std::int64_t held, std::int64_t bytes,
                              std::int64_t bound, absl::Duration retry_delay);

// The time to work off `work` at the rate, within the bounds of a retry delay; 100 ms while the
// rate is unknown.
absl::Duration RetryDelay(absl::Duration work, double work_rate);

}  // namespace attention::server
