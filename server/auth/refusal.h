// Why a call's credentials were refused: statuses with their reasons. No message of them repeats a
// credential.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/base/error_reason.h"

namespace attention::server {

inline absl::Status MissingCredentials(absl::string_view message) {
  return ReasonedError(absl::StatusCode::kUnauthenticated, ErrorReason::kCredentialsMissing,
                       message);
}
inline absl::Status InvalidCredentials(absl::string_view message) {
  return ReasonedError(absl::StatusCode::kUnauthenticated, ErrorReason::kCredentialsInvalid,
                       message);
}
inline absl::Status ExpiredCredentials(absl::string_view message) {
  return ReasonedError(absl::StatusCode::kUnauthenticated, ErrorReason::kCredentialsExpired,
                       message);
}

}  // namespace attention::server
