// The one place that decides whether a computation makes sense: backends ask it where tasks enter
// (Plan, AppendKv, RunWeights), and trust them from there on. Errors are INVALID_ARGUMENT and name
// the field with its actual and the expected value; those of several tasks begin with the task.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "kernels/api/attention_params.h"
#include "kernels/api/stored_rows.h"

namespace attention {

// Counts of heads and their dims.
absl::Status ValidateHeads(const AttentionParams& params);
// Scale, cap, window and sinks.
absl::Status ValidateScores(const AttentionParams& params);
// Both.
absl::Status ValidateParams(const AttentionParams& params);

// Also checks lengths, positions, that pointers are there and that pages suffice for kv_len.
absl::Status ValidateTask(const AttentionTask& task);
absl::Status ValidateTasks(std::span<const AttentionTask> tasks);

// The same for a task without an output, and that the rows are some of its queries.
absl::Status ValidateWeights(const WeightsTask& task);

// Checks the geometry, that the pages hold the tokens, that rows are there, and the order of
// pieces.
absl::Status ValidateAppend(const KvAppendTask& task);
absl::Status ValidateAppends(std::span<const KvAppendTask> tasks);

// Check the geometry, that the pages hold the tokens, and that rows are there.
absl::Status ValidateStoredRows(std::span<const StoredRowsTask> tasks);
// Also that the tokens ascend, and that none moves to a higher place in a page that is in both
// views.
absl::Status ValidateMoves(std::span<const MoveTokensTask> tasks);

}  // namespace attention
