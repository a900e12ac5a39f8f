// Forks, truncates and reorders caches.
#pragma once

#include "absl/status/status.h"
#include "server/domain/attention_request.h"

namespace attention::server {

// The caches, all of one device, owner and shape, are on their device and stay there for as long.
// FAILED_PRECONDITION POSITION_MISMATCH when a length is more than the committed one. All of the
// change is made, or, also when this throws, none.
absl::Status ApplyChange(const CacheChange& change);

}  // namespace attention::server
