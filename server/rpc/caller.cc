#include "server/rpc/caller.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr char kTenantKey[] = "attention-tenant";
constexpr char kAuthorizationKey[] = "authorization";
constexpr std::size_t kMaxMetadataBytes = 128;

std::vector<std::string> Values(const grpc::AuthContext& context, const char* property) {
  std::vector<std::string> values;
  for (const grpc::string_ref& value : context.FindPropertyValues(property)) {
    values.emplace_back(value.data(), value.size());
  }
  return values;
}

std::optional<CertificateNames> ReadCertificate(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr || !peer->IsPeerAuthenticated()) return std::nullopt;
  return CertificateNames{Values(*peer, GRPC_PEER_URI_PROPERTY_NAME),
                          Values(*peer, GRPC_PEER_DNS_PROPERTY_NAME)};
}

}  // namespace

absl::StatusOr<std::optional<std::string>> ReadMetadata(const grpc::ServerContextBase& context,
                                                        const char* key) {
  const auto it = context.client_metadata().find(key);
  if (it == context.client_metadata().end()) return std::nullopt;
  if (it->second.empty() || it->second.size() > kMaxMetadataBytes) {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", key, " has ", it->second.size(),
                                                   " bytes, expected 1 to ", kMaxMetadataBytes));
  }
  std::string value(it->second.data(), it->second.size());
  if (std::all_of(value.begin(), value.end(), IsPrintable)) return value;
  return absl::InvalidArgumentError(absl::StrCat("metadata ", key, " is ", Quoted(value),
                                                 ", expected printable ASCII characters"));
}

absl::StatusOr<Identity> IdentifyCaller(const Authenticator& authenticator,
                                        const grpc::ServerContextBase& context,
                                        const Identity* of_connection, absl::Time now) {
  Credentials credentials;
  ATTENTION_ASSIGN_OR_RETURN(const std::optional<std::string> tenant,
                             ReadMetadata(context, kTenantKey));
  if (tenant) credentials.tenant = *tenant;
  credentials.of_connection = of_connection;
  if (!authenticator.is_open()) {
    const auto authorization = context.client_metadata().find(kAuthorizationKey);
    if (authorization != context.client_metadata().end()) {
      credentials.authorization = {authorization->second.data(), authorization->second.size()};
    }
    credentials.read_certificate = [&context] { return ReadCertificate(context); };
  }
  return authenticator.Check(credentials, now);
}

}  // namespace attention::server
