// Forks, truncates and reorders caches, and lets them have other writers.
#pragma once

#include "absl/status/status.h"
#include "server/domain/attention_request.h"

namespace attention::server {

// The caches, all of one device, owner and shape, are on their device and stay there for as long.
// FAILED_PRECONDITION POSITION_MISMATCH when a length is more than the committed one, FENCED when a
// writer is older than its cache's. All of the
// change is made, or, also when this throws, none.
absl::Status ApplyChange(const CacheChange& change);

}  // namespace attention::server
