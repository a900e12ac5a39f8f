#include "server/auth/authenticator.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/auth/refusal.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::Status InFile(const char* setting, const std::string& path, const absl::Status& status) {
  return {status.code(), absl::StrCat(setting, " is ", Quoted(path), ": ", status.message())};
}

// The token of "Bearer TOKEN"; the scheme's case does not matter (RFC 9110, 11.1).
std::optional<absl::string_view> BearerToken(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return std::nullopt;
  const absl::string_view token =
      absl::StripLeadingAsciiWhitespace(authorization.substr(kScheme.size()));
  if (token.empty()) return std::nullopt;
  return token;
}

absl::Status OtherTenant(absl::string_view named, const Identity& identity) {
  return ReasonedError(
      absl::StatusCode::kPermissionDenied, ErrorReason::kTenantMismatch,
      absl::StrCat("metadata attention-tenant is ", Quoted(named), ", the credentials belong to ",
                   Quoted(identity.tenant), ": expected this name or none"));
}

}  // namespace

Authenticator::Authenticator(AuthFiles files) : files_(std::move(files)) {
  const auto add = [this](const char* setting, const std::string& path, auto with) {
    if (!path.empty()) sources_.push_back({setting, WatchedFile(path), with});
  };
  add("auth-tokens", files_.tokens, &Authenticator::WithTokens);
  add("auth-identities", files_.identities, &Authenticator::WithIdentities);
  add("auth-jwt-keys", files_.jwt_keys, &Authenticator::WithJwtKeys);
  rules_ = std::make_shared<const Rules>();
}

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Create(AuthFiles files) {
  std::unique_ptr<Authenticator> created(new Authenticator(std::move(files)));
  for (Source& source : created->sources_) {
    ATTENTION_RETURN_IF_ERROR(created->Load(source));
  }
  return created;
}

absl::Status Authenticator::Load(Source& source) {
  source.file.MarkRead();
  absl::StatusOr<std::string> text = ReadSmallFile(source.file.path());
  absl::StatusOr<Rules> rules =
      text.ok() ? (this->*source.with)(*text) : absl::StatusOr<Rules>(text.status());
  if (!rules.ok()) return InFile(source.setting, source.file.path(), rules.status());
  MutexLock lock(&mutex_);
  rules_ = std::make_shared<const Rules>(*std::move(rules));
  return absl::OkStatus();
}

std::vector<Authenticator::Reloaded> Authenticator::ReloadChanged() {
  std::vector<Reloaded> reloaded;
  for (Source& source : sources_) {
    if (source.file.Look() != WatchedFile::Change::kSettled) continue;
    reloaded.push_back({source.setting, Load(source)});
  }
  return reloaded;
}

absl::StatusOr<Identity> Authenticator::Check(const Credentials& credentials,
                                              absl::Time now) const {
  if (is_open() && credentials.of_connection == nullptr) {
    return Identity{std::string(credentials.tenant.value_or(kDefaultTenant)), Role::kUse};
  }
  ATTENTION_ASSIGN_OR_RETURN(Identity identity, OfCaller(credentials, now));
  if (credentials.tenant && *credentials.tenant != identity.tenant) {
    return OtherTenant(*credentials.tenant, identity);
  }
  return identity;
}

absl::StatusOr<Identity> Authenticator::OfCaller(const Credentials& credentials,
                                                 absl::Time now) const {
  const std::shared_ptr<const Rules> rules = this->rules();
  if (credentials.authorization && (rules->tokens != nullptr || rules->jwt != nullptr)) {
    return OfToken(*rules, *credentials.authorization, now);
  }
  ATTENTION_ASSIGN_OR_RETURN(std::optional<Identity> of_certificate,
                             OfCertificate(*rules, credentials));
  if (of_certificate) return *std::move(of_certificate);
  if (credentials.of_connection != nullptr) {
    // The file may have changed since the connection was made.
    if (rules->identities != nullptr && rules->identities->HasUserOf(*credentials.of_connection)) {
      return *credentials.of_connection;
    }
    return InvalidCredentials("the user of the connection no longer belongs to a tenant");
  }
  return MissingCredentials(
      "the call has no credentials, expected metadata `authorization: Bearer TOKEN` or a client "
      "certificate, as the server is configured");
}

absl::StatusOr<std::optional<Identity>> Authenticator::OfCertificate(
    const Rules& rules, const Credentials& credentials) {
  if (rules.identities == nullptr || !rules.identities->has_certificates()) return std::nullopt;
  if (!credentials.read_certificate) return std::nullopt;
  const std::optional<CertificateNames> names = credentials.read_certificate();
  if (!names) return std::nullopt;
  std::optional<Identity> identity = rules.identities->OfCertificate(names->uris, names->dns_names);
  if (identity || credentials.of_connection != nullptr) return identity;
  return InvalidCredentials("no name of the client certificate belongs to a tenant");
}

absl::StatusOr<Identity> Authenticator::OfToken(const Rules& rules, absl::string_view authorization,
                                                absl::Time now) const {
  const std::optional<absl::string_view> token = BearerToken(authorization);
  if (!token) return InvalidCredentials("metadata authorization is expected to be `Bearer TOKEN`");
  if (rules.tokens != nullptr) {
    if (const std::optional<Identity> identity = rules.tokens->Find(*token)) return *identity;
  }
  if (rules.jwt != nullptr) return rules.jwt->Verify(*token, now);
  return InvalidCredentials("the token is not known");
}

std::optional<Identity> Authenticator::OfUser(std::uint32_t uid, std::uint32_t gid) const {
  const std::shared_ptr<const Rules> rules = this->rules();
  if (rules->identities == nullptr) return std::nullopt;
  return rules->identities->OfUser(uid, gid);
}

bool Authenticator::has_users() const {
  const std::shared_ptr<const Rules> rules = this->rules();
  return rules->identities != nullptr && rules->identities->has_users();
}

std::shared_ptr<const Authenticator::Rules> Authenticator::rules() const {
  MutexLock lock(&mutex_);
  return rules_;
}

absl::StatusOr<Authenticator::Rules> Authenticator::WithTokens(const std::string& text) const {
  ATTENTION_ASSIGN_OR_RETURN(TokenTable table, TokenTable::Parse(text));
  Rules rules = *this->rules();
  rules.tokens = std::make_shared<const TokenTable>(std::move(table));
  return rules;
}

absl::StatusOr<Authenticator::Rules> Authenticator::WithIdentities(const std::string& text) const {
  ATTENTION_ASSIGN_OR_RETURN(IdentityMap map, IdentityMap::Parse(text));
  Rules rules = *this->rules();
  rules.identities = std::make_shared<const IdentityMap>(std::move(map));
  return rules;
}

absl::StatusOr<Authenticator::Rules> Authenticator::WithJwtKeys(const std::string& text) const {
  ATTENTION_ASSIGN_OR_RETURN(JwtVerifier verifier, JwtVerifier::Create(files_.jwt, text));
  Rules rules = *this->rules();
  rules.jwt = std::make_shared<const JwtVerifier>(std::move(verifier));
  return rules;
}

}  // namespace attention::server
