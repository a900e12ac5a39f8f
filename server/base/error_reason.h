// The reason why a call failed, beyond its status code. Travels inside the server as a payload of
// absl::Status and leaves it as a google.rpc.ErrorInfo.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace attention::server {

// The names are those of attention.v1.ErrorReason without their prefix.
enum class ErrorReason {
  kQueueFull,
  kQuotaExceeded,
  kKvExhausted,
  kDraining,
  kSessionNotFound,
  kSessionExpired,
  kSessionLost,
  kSessionMoved,
  kPositionMismatch,
  kRegionNotFound,
  kLayerNotFound,
  kLayerBytesExhausted,
  kHashMismatch,
  kCredentialsMissing,
  kCredentialsInvalid,
  kCredentialsExpired,
  kTenantMismatch,
  kRoleRequired,
  kPriorityNotAllowed,
  kLayerReadOnly,
  kFenced,
  kWindowDropped,
  kTokensDropped,
};

absl::string_view ErrorReasonName(ErrorReason reason);

struct ErrorDetail {
  std::string reason;  // ErrorReasonName
  std::map<std::string, std::string> metadata;
  std::optional<absl::Duration> retry_delay;
};

// A status that carries the reason. `metadata` holds facts a program can act on.
absl::Status ReasonedError(absl::StatusCode code, ErrorReason reason, absl::string_view message,
                           std::map<std::string, std::string> metadata = {},
                           std::optional<absl::Duration> retry_delay = std::nullopt);

bool HasReason(const absl::Status& status, ErrorReason reason);

// Nothing if the status carries no reason.
std::optional<ErrorDetail> GetErrorDetail(const absl::Status& status);

}  // namespace attention::server
