#include "server/domain/step_resolution.h"

#include <algorithm>
#include <optional>

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
absl::Status ResolveAppend(const SessionStep& step, const LayerTokens& layer, HoldsRows holds,
                           ResolvedStep* resolved) {
  const std::int64_t length = layer.length;
  resolved->new_length = length;
  if (!step.append) {
    resolved->kv_end = step.expected_position.value_or(length);
    if (resolved->kv_end > length) return PositionMismatch(resolved->kv_end, length);
    if (resolved->kv_end >= layer.compacted_length) return absl::OkStatus();
    return TokensDropped(absl::StrCat("expected_position is ", resolved->kv_end),
                         layer.compacted_length);
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
    if (step.append->num_tokens > 0 && expected < layer.first_position) {
      return WindowDropped(absl::StrCat("expected_position is ", expected), layer.first_position);
    }
    if (expected < layer.compacted_length) {
      return TokensDropped(absl::StrCat("expected_position is ", expected), layer.compacted_length);
    }
    if (!holds(expected, step.append->checksums)) return OtherRows(expected, length);
    resolved->is_replay = true;
    return absl::OkStatus();
  }
  return PositionMismatch(expected, length);
}

// The queries and the bounds of the range, in positions, are told apart from all tokens that were
// let go.
absl::Status CheckCompaction(const StepAttend& step, const LayerTokens& layer,
                             const ResolvedStep& resolved) {
  const std::int64_t compacted = layer.compacted_length;
  if (compacted == 0) return absl::OkStatus();
  const AttentionParams& params = step.task.params;
  const auto check_bound = [&](absl::string_view field, std::int64_t position) {
    if (position == 0 || position >= compacted) return absl::OkStatus();
    return TokensDropped(absl::StrCat(field, " is ", position), compacted);
  };
  ATTENTION_RETURN_IF_ERROR(check_bound("kv_begin", resolved.kv_begin));
  if (step.kv_end) ATTENTION_RETURN_IF_ERROR(check_bound("kv_end", *step.kv_end));
  if (step.task.alibi_slopes != nullptr) {
    return TokensDropped("config.alibi_slopes needs the position of each token", compacted);
  }
  // The newest of the tokens before is a query's own, and sees them all.
  const std::int64_t first = resolved.first_query_position;
  const bool has_right_edge = params.is_causal || params.window_right >= 0;
  if (has_right_edge && first + (params.is_causal ? 0 : params.window_right) < compacted - 1) {
    return TokensDropped(absl::StrCat("the first query's position is ", first), compacted);
  }
  if (params.window_left < 0) return absl::OkStatus();
  if (first - params.window_left >= compacted && params.sink_tokens == 0) return absl::OkStatus();
  return TokensDropped(absl::StrCat("config.window_left is ", params.window_left,
                                    " for a query at position ", first),
                       compacted);
}

absl::Status ResolveRange(const StepAttend& step, const LayerTokens& layer,
                          ResolvedStep* resolved) {
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
  ATTENTION_RETURN_IF_ERROR(CheckCompaction(step, layer, *resolved));
  resolved->kv_begin = std::max<std::int64_t>(0, resolved->kv_begin - layer.num_dropped);
  resolved->kv_end = std::max<std::int64_t>(0, resolved->kv_end - layer.num_dropped);
  resolved->first_query_position -= layer.num_dropped;
  return absl::OkStatus();
}

// All keys that the queries see are still there.
absl::Status CheckWindow(const StepAttend& step, const LayerTokens& layer,
                         const ResolvedStep& resolved) {
  if (layer.first_position == 0 || step.task.q_len == 0) return absl::OkStatus();
  AttentionTask task = step.task;
  task.kv_begin = resolved.kv_begin;
  task.kv_len = resolved.kv_end;
  task.first_query_position = resolved.first_query_position;
  // Both ends grow with the position. The sinks are there.
  const std::int64_t first = task.position(0);
  const std::int64_t oldest = std::max(VisibleKeysOf(task, first).begin, layer.sink_end);
  const std::int64_t end = VisibleKeysOf(task, task.position(task.q_len - 1)).end;
  if (oldest >= std::min(end, layer.first_position)) return absl::OkStatus();
  return WindowDropped(absl::StrCat("the first query is at position ", first,
                                    " and sees keys from position ", oldest, " on"),
                       layer.first_position);
}

absl::Status CheckKeyAxis(absl::string_view field, const std::optional<BiasOrMaskShape>& shape,
                          const StepAttend& step, std::int64_t kv_len) {
  if (!shape || shape->kv_len == kv_len || shape->kv_len == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".shape ends with ", shape->kv_len, ", expected 1 or ", kv_len,
                   ", the keys from 0 to ", step.kv_end ? "kv_end" : "the attended length",
                   step.kv_begin > 0 ? ", those before kv_begin included" : ""));
}

// `what`: rows of `row_bytes` for each key.
absl::Status CheckKeyBytes(absl::string_view what, std::optional<std::int64_t> max_bytes,
                           std::int64_t kv_len, std::int64_t row_bytes) {
  if (!max_bytes || row_bytes == 0 || kv_len <= *max_bytes / row_bytes) return absl::OkStatus();
  // Only a step that did not say which length it expects gets here.
  return ReasonedError(
      absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
      absl::StrCat("returns.", what, " takes ", kv_len, " rows of ", row_bytes,
                   " bytes: the layer has grown since the step arrived, when there was room for ",
                   *max_bytes, " bytes; send it again"),
      {}, absl::Milliseconds(1));
}

absl::Status CheckResults(const StepAttend& step, std::int64_t kv_len) {
  const std::int64_t row_bytes =
      static_cast<std::int64_t>(sizeof(float)) * step.task.params.num_q_heads;
  ATTENTION_RETURN_IF_ERROR(
      CheckKeyBytes("column_sums", step.max_column_sum_bytes, kv_len, row_bytes));
  return CheckKeyBytes("weights", step.max_weight_bytes, kv_len, row_bytes * step.task.q_len);
}

}  // namespace

absl::Status WindowDropped(absl::string_view what, std::int64_t first_position) {
  return ReasonedError(
      absl::StatusCode::kFailedPrecondition, ErrorReason::kWindowDropped,
      absl::StrCat(what, ", but the layer's window has let go the tokens before position ",
                   first_position),
      {{"first_position", absl::StrCat(first_position)}});
}

absl::Status TokensDropped(absl::string_view what, std::int64_t compacted_length) {
  return ReasonedError(
      absl::StatusCode::kFailedPrecondition, ErrorReason::kTokensDropped,
      absl::StrCat(what, ", but KeepTokens has let tokens of the layer go when its length was ",
                   compacted_length, ", and positions before that are not told apart any more"),
      {{"compacted_length", absl::StrCat(compacted_length)}});
}

absl::StatusOr<ResolvedStep> ResolveStep(const SessionStep& step, const LayerTokens& layer,
                                         HoldsRows holds) {
  ResolvedStep resolved;
  ATTENTION_RETURN_IF_ERROR(ResolveAppend(step, layer, holds, &resolved));
  if (!step.attend) return resolved;
  const StepAttend& attend = *step.attend;
  ATTENTION_RETURN_IF_ERROR(ResolveRange(attend, layer, &resolved));
  ATTENTION_RETURN_IF_ERROR(CheckWindow(attend, layer, resolved));
  ATTENTION_RETURN_IF_ERROR(CheckKeyAxis("bias", attend.bias_shape, attend, resolved.kv_end));
  ATTENTION_RETURN_IF_ERROR(CheckKeyAxis("mask", attend.mask_shape, attend, resolved.kv_end));
  ATTENTION_RETURN_IF_ERROR(CheckResults(attend, resolved.kv_end));
  return resolved;
}

}  // namespace attention::server
