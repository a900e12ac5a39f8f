// Changes of whole caches: forks, truncations, reorders, other writers, tokens that are let go; and
// readings of what they hold.
#pragma once

#include "absl/status/status.h"
#include "kernels/api/attention_backend.h"
#include "server/domain/attention_request.h"
#include "server/engine/spiller.h"

namespace attention::server {

// The caches, all of one device, owner and shape, are on their device and stay there for as long.
// `spiller` makes room, if it is not null. FAILED_PRECONDITION POSITION_MISMATCH when a length is
// more than the committed one or a number of tokens is not the layer's, TOKENS_DROPPED when a
// length lies before the one at which tokens were let go, FENCED when a writer is older than its
// cache's; INVALID_ARGUMENT names the field that does not fit the caches; RESOURCE_EXHAUSTED
// KV_EXHAUSTED or QUOTA_EXCEEDED for copies of pages. All of the change is made, or, also when this
// throws, none.
absl::Status ApplyChange(const CacheChange& change, AttentionBackend& backend, Spiller* spiller);

}  // namespace attention::server
