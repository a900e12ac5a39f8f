#include "server/base/error_reason.h"

#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace attention::server {
namespace {

// The payload is a list of key=value lines; keys and values are ours and hold neither newline nor,
// in keys, an equals sign.
constexpr char kPayloadUrl[] = "attention.v1/ErrorDetail";
constexpr char kReasonKey[] = "reason";
constexpr char kRetryKey[] = "retry_delay_ns";

}  // namespace

absl::string_view ErrorReasonName(ErrorReason reason) {
  switch (reason) {
    case ErrorReason::kQueueFull:
      return "QUEUE_FULL";
    case ErrorReason::kQuotaExceeded:
      return "QUOTA_EXCEEDED";
    case ErrorReason::kKvExhausted:
      return "KV_EXHAUSTED";
    case ErrorReason::kDraining:
      return "DRAINING";
    case ErrorReason::kSessionNotFound:
      return "SESSION_NOT_FOUND";
    case ErrorReason::kSessionExpired:
      return "SESSION_EXPIRED";
    case ErrorReason::kSessionLost:
      return "SESSION_LOST";
    case ErrorReason::kSessionMoved:
      return "SESSION_MOVED";
    case ErrorReason::kPositionMismatch:
      return "POSITION_MISMATCH";
    case ErrorReason::kRegionNotFound:
      return "REGION_NOT_FOUND";
    case ErrorReason::kLayerNotFound:
      return "LAYER_NOT_FOUND";
    case ErrorReason::kLayerBytesExhausted:
      return "LAYER_BYTES_EXHAUSTED";
    case ErrorReason::kHashMismatch:
      return "HASH_MISMATCH";
    case ErrorReason::kCredentialsMissing:
      return "CREDENTIALS_MISSING";
    case ErrorReason::kCredentialsInvalid:
      return "CREDENTIALS_INVALID";
    case ErrorReason::kCredentialsExpired:
      return "CREDENTIALS_EXPIRED";
    case ErrorReason::kTenantMismatch:
      return "TENANT_MISMATCH";
    case ErrorReason::kRoleRequired:
      return "ROLE_REQUIRED";
    case ErrorReason::kPriorityNotAllowed:
      return "PRIORITY_NOT_ALLOWED";
    case ErrorReason::kLayerReadOnly:
      return "LAYER_READ_ONLY";
    case ErrorReason::kFenced:
      return "FENCED";
    case ErrorReason::kWindowDropped:
      return "WINDOW_DROPPED";
    case ErrorReason::kTokensDropped:
      return "TOKENS_DROPPED";
  }
  return "UNSPECIFIED";
}

absl::Status ReasonedError(absl::StatusCode code, ErrorReason reason, absl::string_view message,
                           std::map<std::string, std::string> metadata,
                           std::optional<absl::Duration> retry_delay) {
  metadata[kReasonKey] = std::string(ErrorReasonName(reason));
  if (retry_delay) metadata[kRetryKey] = absl::StrCat(absl::ToInt64Nanoseconds(*retry_delay));
  std::vector<std::string> lines;
  lines.reserve(metadata.size());
  for (const auto& [key, value] : metadata) {
    lines.push_back(absl::StrCat(key, "=", absl::CEscape(value)));
  }
  absl::Status status(code, message);
  status.SetPayload(kPayloadUrl, absl::Cord(absl::StrJoin(lines, "\n")));
  return status;
}

bool HasReason(const absl::Status& status, ErrorReason reason) {
  const std::optional<ErrorDetail> detail = GetErrorDetail(status);
  return detail && detail->reason == ErrorReasonName(reason);
}

std::optional<ErrorDetail> GetErrorDetail(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayloadUrl);
  if (!payload) return std::nullopt;
  ErrorDetail detail;
  for (absl::string_view line : absl::StrSplit(std::string(*payload), '\n')) {
    const std::pair<std::string, std::string> entry = absl::StrSplit(line, absl::MaxSplits('=', 1));
    absl::CUnescape(entry.second, &detail.metadata[entry.first]);
  }
  if (auto node = detail.metadata.extract(kReasonKey)) detail.reason = node.mapped();
  if (auto node = detail.metadata.extract(kRetryKey)) {
    std::int64_t nanoseconds = 0;
    if (absl::SimpleAtoi(node.mapped(), &nanoseconds)) {
      detail.retry_delay = absl::Nanoseconds(nanoseconds);
    }
  }
  return detail;
}

}  // namespace attention::server
