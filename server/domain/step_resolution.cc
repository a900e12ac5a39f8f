#include "server/domain/step_resolution.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::Status PositionMismatch(std::int64_t expected, std::int64_t actual) {
  return ReasonedError(
      absl::StatusCode::kFailedPrecondition, ErrorReason::kPositionMismatch,
      absl::StrCat("expected_position is ", expected, ", but the layer holds ", actual, " tokens"),
      {{"actual_position", absl::StrCat(actual)}});
}

absl::Status OtherRows(std::int64_t expected, std::int64_t length) {
  return ReasonedError(
      absl::StatusCode::kFailedPrecondition, ErrorReason::kPositionMismatch,
      absl::StrCat("expected_position is ", expected, ", where the layer, which holds ", length,
                   " tokens, holds other rows than the step's: to put these in their place, call "
                   "TruncateSession with length ",
                   expected, " first"),
      {{"actual_position", absl::StrCat(length)}});
}

// Decides between append, replay and refusal; sets the length that the step attends over by
// default.
absl::Status ResolveAppend(const SessionStep& step, std::int64_t length, HoldsRows holds,
                           const KeptTokens& kept, ResolvedStep* resolved) {
  resolved->new_length = length;
  if (!step.append) {
    resolved->kv_end = step.expected_position.value_or(length);
    if (resolved->kv_end > length) return PositionMismatch(resolved->kv_end, length);
    return absl::OkStatus();
  }
  const std::int64_t expected = step.expected_position.value_or(length);
  resolved->append_position = expected;
  resolved->kv_end = expected + step.append->num_tokens;
  if (expected == length) {
    resolved->is_append = step.append->num_tokens > 0;
    resolved->new_length = resolved->kv_end;
    return absl::OkStatus();
  }
  // Rows that end inside the cache were applied by an earlier attempt whose answer got lost.
  if (resolved->kv_end <= length) {
    if (step.append->num_tokens > 0 && expected < kept.begin) {
      return WindowDropped(absl::StrCat("expected_position is ", expected), kept.begin);
    }
    if (!holds(expected, step.append->checksums)) return OtherRows(expected, length);
    resolved->is_replay = true;
    return absl::OkStatus();
  }
  return PositionMismatch(expected, length);
}

absl::Status ResolveRange(const StepAttend& step, ResolvedStep* resolved) {
  const std::int64_t attended = resolved->kv_end;
  if (step.kv_end) {
    if (*step.kv_end > attended) {
      return absl::InvalidArgumentError(absl::StrCat(
          "kv_end is ", *step.kv_end, ", expected at most the attended length ", attended));
    }
    resolved->kv_end = *step.kv_end;
  }
  if (step.kv_begin > resolved->kv_end) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_begin is ", step.kv_begin, ", expected at most ",
                     step.kv_end ? "kv_end, " : "the attended length ", resolved->kv_end));
  }
  resolved->kv_begin = step.kv_begin;
  // Positions count from the start of the cache, whatever part of it is attended over.
  resolved->first_query_position = step.first_query_position.value_or(attended - step.task.q_len);
  return absl::OkStatus();
}

// All keys that the queries see are still there.
absl::Status CheckKept(const StepAttend& step, const ResolvedStep& resolved,
                       const KeptTokens& kept) {
  if (kept.begin == 0 || step.task.q_len == 0) return absl::OkStatus();
  AttentionTask task = step.task;
  task.kv_begin = resolved.kv_begin;
  task.kv_len = resolved.kv_end;
  task.first_query_position = resolved.first_query_position;
  // Both ends grow with the position. The sinks are there.
  const std::int64_t first = task.position(0);
  const std::int64_t oldest = std::max(VisibleKeysOf(task, first).begin, kept.sink_end);
  const std::int64_t end = VisibleKeysOf(task, task.position(task.q_len - 1)).end;
  if (oldest >= std::min(end, kept.begin)) return absl::OkStatus();
  return WindowDropped(absl::StrCat("the first query is at position ", first,
                                    " and sees keys from position ", oldest, " on"),
                       kept.begin);
}

absl::Status CheckKeyAxis(absl::string_view field, const std::optional<BiasOrMaskShape>& shape,
                          const StepAttend& step, std::int64_t kv_len) {
  if (!shape || shape->kv_len == kv_len || shape->kv_len == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".shape ends with ", shape->kv_len, ", expected 1 or ", kv_len,
                   ", the keys from 0 to ", step.kv_end ? "kv_end" : "the attended length",
                   step.kv_begin > 0 ? ", those before kv_begin included" : ""));
}

absl::Status CheckColumnSums(const StepAttend& step, std::int64_t kv_len) {
  if (!step.max_column_sum_bytes) return absl::OkStatus();
  const std::int64_t row_bytes =
      static_cast<std::int64_t>(sizeof(float)) * step.task.params.num_q_heads;
  if (kv_len <= *step.max_column_sum_bytes / row_bytes) return absl::OkStatus();
  // Only a step that did not say which length it expects gets here.
  return ReasonedError(
      absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
      absl::StrCat("returns.column_sums takes ", kv_len, " rows of ", row_bytes,
                   " bytes: the layer has grown since the step arrived, when there was room for ",
                   *step.max_column_sum_bytes, " bytes; send it again"),
      {}, absl::Milliseconds(1));
}

}  // namespace

absl::Status WindowDropped(absl::string_view what, std::int64_t first_position) {
  return ReasonedError(
      absl::StatusCode::kFailedPrecondition, ErrorReason::kWindowDropped,
      absl::StrCat(what, ", but the layer's window has let go the tokens before position ",
                   first_position),
      {{"first_position", absl::StrCat(first_position)}});
}

absl::StatusOr<ResolvedStep> ResolveStep(const SessionStep& step, std::int64_t length,
                                         HoldsRows holds, const KeptTokens& kept) {
  ResolvedStep resolved;
  ATTENTION_RETURN_IF_ERROR(ResolveAppend(step, length, holds, kept, &resolved));
  if (!step.attend) return resolved;
  const StepAttend& attend = *step.attend;
  ATTENTION_RETURN_IF_ERROR(ResolveRange(attend, &resolved));
  ATTENTION_RETURN_IF_ERROR(CheckKept(attend, resolved, kept));
  ATTENTION_RETURN_IF_ERROR(CheckKeyAxis("bias", attend.bias_shape, attend, resolved.kv_end));
  ATTENTION_RETURN_IF_ERROR(CheckKeyAxis("mask", attend.mask_shape, attend, resolved.kv_end));
  ATTENTION_RETURN_IF_ERROR(CheckColumnSums(attend, resolved.kv_end));
  return resolved;
}

}  // namespace attention::server
