// The one place that decides whether a computation makes sense. Errors are INVALID_ARGUMENT and
// name the field with its actual and the expected value.
#pragma once

#include "absl/status/status.h"
#include "kernels/api/attention_params.h"

namespace attention {

// Counts of heads and their dims.
absl::Status ValidateHeads(const AttentionParams& params);
// Scale, cap, window and sinks.
absl::Status ValidateScores(const AttentionParams& params);
// Both.
absl::Status ValidateParams(const AttentionParams& params);

// Also checks lengths, positions, that pointers are there and that pages suffice for kv_len.
absl::Status ValidateTask(const AttentionTask& task);

// Also checks that the pages hold the tokens, that rows are there, and the order of pieces.
absl::Status ValidateAppend(const KvAppendTask& task);

}  // namespace attention
