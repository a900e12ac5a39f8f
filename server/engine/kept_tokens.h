// The tokens that a call keeps, held against what a cache holds.
#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/cache/kv_cache.h"
#include "server/domain/attention_request.h"

namespace attention::server {

// One entry for each layer of which tokens are let go. INVALID_ARGUMENT names the field;
// FAILED_PRECONDITION POSITION_MISMATCH as below.
absl::StatusOr<std::vector<LayerKeep>> ResolveKeep(std::span<const KeptTokens> kept,
                                                   const KvCache& cache);

// FAILED_PRECONDITION POSITION_MISMATCH with metadata actual_tokens: the layer does not hold the
// tokens of `what`, as in "end is 9".
absl::Status TokensMismatch(absl::string_view what, int layer, std::int64_t num_held);

}  // namespace attention::server
