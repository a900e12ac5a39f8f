#include <algorithm>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/connection/grpc_connection.h"
#include "client/internal/credentials/identity.h"
#include "client/internal/credentials/tls_material.h"

namespace attention::client::internal {
namespace {

constexpr int kMaxChannels = 64;
constexpr std::int64_t kMinSharedBytes = std::int64_t{1} << 20;
constexpr std::int64_t kMaxSharedBytes = std::int64_t{1} << 40;

absl::Status Check(bool is_valid, const char* option, const char* expected) {
  if (is_valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(option, ": expected ", expected));
}

absl::Status CheckRetryPolicy(const RetryPolicy& policy) {
  ATTENTION_CLIENT_RETURN_IF_ERROR(
      Check(policy.max_attempts >= 1, "retry_policy.max_attempts", "at least 1"));
  ATTENTION_CLIENT_RETURN_IF_ERROR(Check(policy.initial_backoff >= absl::ZeroDuration() &&
                                             policy.initial_backoff <= policy.max_backoff,
                                         "retry_policy.initial_backoff", "0 to max_backoff"));
  ATTENTION_CLIENT_RETURN_IF_ERROR(
      Check(policy.multiplier >= 1, "retry_policy.multiplier", "at least 1"));
  return Check(policy.jitter >= 0 && policy.jitter <= 1, "retry_policy.jitter", "0 to 1");
}

bool IsPrintable(const std::string& text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isprint(static_cast<unsigned char>(c)); });
}

absl::Status CheckTarget(const std::string& target) {
  ATTENTION_CLIENT_RETURN_IF_ERROR(Check(!target.empty(), "targets", "no empty address"));
  const std::size_t end = target.find("://");
  if (end == std::string::npos) return absl::OkStatus();
  const std::string scheme = target.substr(0, end);
  if (scheme == "dns" || scheme == "unix") return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("targets: '", target, "' is a URL of the scheme ", scheme,
                   ", expected host:port, dns:///host:port or unix:/path"));
}

}  // namespace

absl::Status CheckOptions(const ClientOptions& options) {
  ATTENTION_CLIENT_RETURN_IF_ERROR(Check(!options.targets.empty(), "targets", "at least one"));
  for (const std::string& target : options.targets) {
    ATTENTION_CLIENT_RETURN_IF_ERROR(CheckTarget(target));
  }
  ATTENTION_CLIENT_RETURN_IF_ERROR(CheckIdentity(options));
  if (options.tls.has_value()) {
    ATTENTION_CLIENT_RETURN_IF_ERROR(ReadTlsMaterial(*options.tls).status());
  }
  ATTENTION_CLIENT_RETURN_IF_ERROR(
      Check(options.default_timeout > absl::ZeroDuration(), "default_timeout", "more than 0"));
  ATTENTION_CLIENT_RETURN_IF_ERROR(Check(
      options.max_message_bytes > 0 && options.max_message_bytes <= std::numeric_limits<int>::max(),
      "max_message_bytes", "1 to 2^31 - 1"));
  ATTENTION_CLIENT_RETURN_IF_ERROR(
      Check(options.num_channels >= 1 && options.num_channels <= kMaxChannels, "num_channels",
            "1 to 64"));
  ATTENTION_CLIENT_RETURN_IF_ERROR(Check(options.keepalive_interval > absl::ZeroDuration() &&
                                             options.keepalive_timeout > absl::ZeroDuration(),
                                         "keepalive_interval and keepalive_timeout",
                                         "more than 0"));
  ATTENTION_CLIENT_RETURN_IF_ERROR(Check(options.shared_memory.max_bytes >= kMinSharedBytes &&
                                             options.shared_memory.max_bytes <= kMaxSharedBytes,
                                         "shared_memory.max_bytes", "2^20 to 2^40"));
  return CheckRetryPolicy(options.retry_policy);
}

absl::Status CheckOptions(const CallOptions& options) {
  ATTENTION_CLIENT_RETURN_IF_ERROR(
      Check(IsPrintable(options.request_id), "request_id", "printable ASCII"));
  if (options.retry_policy.has_value()) return CheckRetryPolicy(*options.retry_policy);
  return absl::OkStatus();
}

}  // namespace attention::client::internal
