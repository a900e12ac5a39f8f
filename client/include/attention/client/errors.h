// Reading errors. Every function of the SDK reports failure as absl::Status with the canonical code
// and message that the server sent; the reason, its metadata and the server's retry delay travel as
// payloads of that status and are read with the functions below. Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace attention::client {

// The values of ErrorReason; attention/v1/errors.proto says when each occurs.
inline constexpr std::string_view kQueueFull = "QUEUE_FULL";
inline constexpr std::string_view kQuotaExceeded = "QUOTA_EXCEEDED";
inline constexpr std::string_view kKvExhausted = "KV_EXHAUSTED";
inline constexpr std::string_view kDraining = "DRAINING";
inline constexpr std::string_view kSessionNotFound = "SESSION_NOT_FOUND";
inline constexpr std::string_view kSessionExpired = "SESSION_EXPIRED";
inline constexpr std::string_view kSessionLost = "SESSION_LOST";
inline constexpr std::string_view kSessionMoved = "SESSION_MOVED";
inline constexpr std::string_view kFenced = "FENCED";
inline constexpr std::string_view kTokensDropped = "TOKENS_DROPPED";
inline constexpr std::string_view kPositionMismatch = "POSITION_MISMATCH";
inline constexpr std::string_view kWindowDropped = "WINDOW_DROPPED";
inline constexpr std::string_view kRegionNotFound = "REGION_NOT_FOUND";
inline constexpr std::string_view kLayerNotFound = "LAYER_NOT_FOUND";
inline constexpr std::string_view kLayerBytesExhausted = "LAYER_BYTES_EXHAUSTED";
inline constexpr std::string_view kHashMismatch = "HASH_MISMATCH";
// UNAUTHENTICATED. The SDK itself gives the first two when it has no token to send.
inline constexpr std::string_view kCredentialsMissing = "CREDENTIALS_MISSING";
inline constexpr std::string_view kCredentialsInvalid = "CREDENTIALS_INVALID";
inline constexpr std::string_view kCredentialsExpired = "CREDENTIALS_EXPIRED";
// PERMISSION_DENIED.
inline constexpr std::string_view kTenantMismatch = "TENANT_MISMATCH";
inline constexpr std::string_view kRoleRequired = "ROLE_REQUIRED";

// Metadata keys.
inline constexpr std::string_view kActualPosition = "actual_position";  // with kPositionMismatch
inline constexpr std::string_view kFirstPosition = "first_position";    // with kWindowDropped
inline constexpr std::string_view kServerName = "server_name";          // with kSessionMoved

// Why the call failed, beyond its code; nullopt when the server gave no reason.
std::optional<std::string> ErrorReason(const absl::Status& status);

// The fact named `key` beside the reason; nullopt when there is none.
std::optional<std::string> ErrorMetadata(const absl::Status& status, std::string_view key);

// The layer's length that a kPositionMismatch reports, in tokens.
std::optional<std::int64_t> ActualPosition(const absl::Status& status);

// How long the server asked to wait before a retry; nullopt when it did not.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

// Attaches a reason and facts, or a delay, as the SDK does for what a server sends: for tests of
// one's own error handling against MockConnection. OK is returned unchanged.
absl::Status WithReason(absl::Status status, std::string_view reason,
                        const std::map<std::string, std::string>& metadata = {});
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

}  // namespace attention::client
