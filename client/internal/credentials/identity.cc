#include "client/internal/credentials/identity.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/internal/credentials/target_address.h"

namespace attention::client::internal {
namespace {

constexpr char kTenantKey[] = "attention-tenant";
constexpr char kTokenKey[] = "authorization";

// Keys that gRPC or another option sets, and the option, if there is one.
struct ReservedKey {
  absl::string_view key;
  absl::string_view option;
};
constexpr auto kReservedKeys =
    std::to_array<ReservedKey>({{kTokenKey, "token"},
                                {kTenantKey, "tenant"},
                                {"x-request-id", "CallOptions::request_id"},
                                {"content-type", ""},
                                {"host", ""},
                                {"te", ""},
                                {"user-agent", ""}});

bool IsPrintable(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isprint(static_cast<unsigned char>(c)); });
}

bool IsKeyByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

absl::Status CheckKey(const std::string& key) {
  if (key.empty()) return absl::InvalidArgumentError("metadata: a key is empty");
  const auto wrong = std::find_if_not(key.begin(), key.end(), IsKeyByte);
  if (wrong != key.end()) {
    return absl::InvalidArgumentError(absl::StrCat("metadata: byte ", wrong - key.begin(),
                                                   " of the key '", IsPrintable(key) ? key : "",
                                                   "' is not one of a-z, 0-9 and -_."));
  }
  for (const ReservedKey& reserved : kReservedKeys) {
    if (key != reserved.key) continue;
    return absl::InvalidArgumentError(
        reserved.option.empty()
            ? absl::StrCat("metadata: gRPC itself sets the key '", key, "'")
            : absl::StrCat("metadata: the key '", key, "' is set by the option ", reserved.option));
  }
  if (!absl::StartsWith(key, "grpc-")) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("metadata: the key '", key, "' begins with grpc-, as gRPC's own do"));
}

absl::Status CheckMetadata(const std::string& key, const std::string& value) {
  if (absl::Status status = CheckKey(key); !status.ok()) return status;
  if (absl::EndsWith(key, "-bin")) return absl::OkStatus();
  const bool is_stripped = absl::StripAsciiWhitespace(value).size() == value.size();
  if (IsPrintable(value) && is_stripped) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "metadata: the value of '", key, "': expected printable ASCII, without spaces at the ends"));
}

}  // namespace

Identity::Identity(const ClientOptions& options)
    : tenant_(options.tenant),
      metadata_(options.metadata),
      token_(MakeTokenSource(options.token)) {}

absl::Status Identity::AddTo(grpc::ClientContext* context) const {
  if (token_ != nullptr) {
    const absl::StatusOr<std::string> token = token_->Token();
    if (!token.ok()) return token.status();
    context->AddMetadata(kTokenKey, absl::StrCat("Bearer ", *token));
  }
  if (tenant_.has_value()) context->AddMetadata(kTenantKey, *tenant_);
  for (const auto& [key, value] : metadata_) context->AddMetadata(key, value);
  return absl::OkStatus();
}

absl::Status CheckIdentity(const ClientOptions& options) {
  if (options.tenant.has_value() && (options.tenant->empty() || !IsPrintable(*options.tenant))) {
    return absl::InvalidArgumentError("tenant: expected printable ASCII, not empty");
  }
  for (const auto& [key, value] : options.metadata) {
    if (absl::Status status = CheckMetadata(key, value); !status.ok()) return status;
  }
  if (absl::Status status = CheckTokenOptions(options.token); !status.ok()) return status;
  if (!options.token.is_set() || options.tls.has_value() || options.token.allow_unencrypted) {
    return absl::OkStatus();
  }
  const auto leaves =
      std::find_if_not(options.targets.begin(), options.targets.end(), IsOnThisHost);
  if (leaves == options.targets.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "token: it would be sent to '", *leaves,
      "' in the clear; expected tls to be set, a loopback address or a unix socket, or "
      "token.allow_unencrypted"));
}

}  // namespace attention::client::internal
