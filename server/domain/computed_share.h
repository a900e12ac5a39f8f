// The share of a request that was computed: what its tenant pays for, and what a device's speed is
// measured by.
#pragma once

#include "server/domain/attention_request.h"

namespace attention::server {

// The share of the request's work that was computed, 0 to 1; failed work counts as not computed.
double ComputedShare(const AttentionRequest& request, const AttentionResult& result);

}  // namespace attention::server
