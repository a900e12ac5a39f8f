// How much of a request was computed: what its tenant pays for, and what a device's speed is
// measured by.
#pragma once

#include "server/domain/attention_request.h"

namespace attention::server {

// Of the request's work, 0 to 1: nothing of what failed.
double ComputedShare(const AttentionRequest& request, const AttentionResult& result);

}  // namespace attention::server
