// The meaning of a session step at the moment it runs: a pure function of the step, the layer's
// length and the checksums of the rows in it, which only the session's worker changes.
#pragma once

#include <cstdint>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/domain/attention_request.h"
#include "server/domain/layer_tokens.h"

namespace attention::server {

struct ResolvedStep {
  bool is_append = false;  // rows are to be written at append_position
  bool is_replay = false;  // the rows are already there
  std::int64_t append_position = 0;
  std::int64_t new_length = 0;  // the layer's length after the step

  // The attended range and the position of the first query, as they count among the tokens that the
  // layer holds: a kernel sees these alone. Meaningful when the step attends.
  std::int64_t kv_begin = 0;
  std::int64_t kv_end = 0;
  std::int64_t first_query_position = 0;
};

// FAILED_PRECONDITION WINDOW_DROPPED: `what` needs a token that has been let go.
absl::Status WindowDropped(absl::string_view what, std::int64_t first_position);

// True when the rows from `position` on, all of which the layer has, came with these checksums.
using HoldsRows =
    absl::FunctionRef<bool(std::int64_t position, std::span<const std::uint32_t> checksums)>;

// FAILED_PRECONDITION POSITION_MISMATCH with metadata actual_position, WINDOW_DROPPED with
// first_position, or TOKENS_DROPPED for positions before the compacted length; INVALID_ARGUMENT
// naming the field; RESOURCE_EXHAUSTED QUEUE_FULL when the result has outgrown what was reserved
// for it.
absl::StatusOr<ResolvedStep> ResolveStep(const SessionStep& step, const LayerTokens& layer,
                                         HoldsRows holds);

// FAILED_PRECONDITION TOKENS_DROPPED: `what`, as in "kv_end is 3", is not told apart in a layer
// that was compacted at this length.
absl::Status TokensDropped(absl::string_view what, std::int64_t compacted_length);

}  // namespace attention::server
