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

namespace attention::server {

struct ResolvedStep {
  bool is_append = false;  // rows are to be written at append_position
  bool is_replay = false;  // the rows are already there
  std::int64_t append_position = 0;
  std::int64_t new_length = 0;  // the layer's length after the step

  // The attended range and the position of the first query; meaningful when the step attends.
  std::int64_t kv_begin = 0;
  std::int64_t kv_end = 0;
  std::int64_t first_query_position = 0;
};

// The tokens that a layer with a window still has: [0, sink_end), and [begin, length).
struct KeptTokens {
  std::int64_t sink_end = 0;
  std::int64_t begin = 0;  // 0: all
};

// FAILED_PRECONDITION WINDOW_DROPPED: `what` needs a token that has been let go.
absl::Status WindowDropped(absl::string_view what, std::int64_t first_position);

// True when the rows from `position` on, all of which the layer has, came with these checksums.
using HoldsRows =
    absl::FunctionRef<bool(std::int64_t position, std::span<const std::uint32_t> checksums)>;

// FAILED_PRECONDITION POSITION_MISMATCH with metadata actual_position, WINDOW_DROPPED with
// first_position; INVALID_ARGUMENT naming the field; RESOURCE_EXHAUSTED QUEUE_FULL when the result
// has outgrown what was reserved for it.
absl::StatusOr<ResolvedStep> ResolveStep(const SessionStep& step, std::int64_t length,
                                         HoldsRows holds, const KeptTokens& kept = {});

}  // namespace attention::server
