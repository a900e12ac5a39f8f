#include "server/config/auth_flags.h"

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "server/auth/token_table.h"

namespace attention::server {
namespace {

CLI::Validator AlgorithmsCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        for (const std::string& name : Split(text)) {
          if (!IsJwtAlgorithm(name)) {
            return absl::StrCat("has '", name, "', expected RS, PS or ES with 256, 384 or 512");
          }
        }
        return {};
      },
      "ALGORITHM[,...]", "algorithms");
}

bool ParseNewToken(const std::string& text, Identity* identity) {
  const auto end = text.find('=');
  identity->tenant = text.substr(0, end);
  return IsTenantName(identity->tenant) && !absl::StrContains(identity->tenant, ' ') &&
         (end == std::string::npos || ParseRole(text.substr(end + 1), &identity->role));
}

}  // namespace

void AddAuth(FlagSet& flags, ServerConfig& config) {
  AuthFiles& files = config.auth;
  flags.Add("--auth-tokens", files.tokens, "File of bearer tokens' hashes; empty: none");
  flags.Add("--auth-identities", files.identities,
            "TOML file that maps client certificates and users of the system to tenants; empty: "
            "none");
  flags.Add("--auth-jwt-keys", files.jwt_keys,
            "Key set (JWKS) of who signs JSON Web Tokens; empty: none");
  flags.Add("--auth-jwt-issuer", files.jwt.issuer, "The issuer that these tokens must name");
  flags.Add("--auth-jwt-audience", files.jwt.audience, "The audience that they must be for");
  flags.AddList("--auth-jwt-algorithms", absl::StrJoin(files.jwt.algorithms, ","),
                "The algorithms that they may be signed with", AlgorithmsCheck(),
                [&files](const std::string& text) { files.jwt.algorithms = Split(text); });
  flags.AddDuration("--auth-jwt-clock-skew", files.jwt.clock_skew,
                    "How far the clocks of issuer and server may differ", absl::ZeroDuration());
  flags.Add("--auth-jwt-tenant-claim", files.jwt.tenant_claim, "The claim that names the tenant");
  flags.Add("--auth-jwt-role-claim", files.jwt.role_claim,
            "The claim that says admin, or a list with it; empty: all have the role use");
  flags.Add("--trust-tenant-names-from-network", config.trust_tenant_names_from_network,
            "Without credentials, listen beyond this host although any caller may then say to be "
            "any tenant");
}

std::string CheckAuth(const ServerConfig& config) {
  const AuthFiles& files = config.auth;
  if (files.jwt_keys.empty()) {
    if (files.jwt.issuer.empty() && files.jwt.audience.empty()) return {};
    return "auth-jwt-keys is empty, expected a file beside auth-jwt-issuer and auth-jwt-audience";
  }
  if (files.jwt.issuer.empty() || files.jwt.audience.empty()) {
    return "auth-jwt-issuer or auth-jwt-audience is empty, expected both beside auth-jwt-keys: "
           "else tokens that are meant for others would be taken";
  }
  if (files.jwt.tenant_claim.empty()) {
    return "auth-jwt-tenant-claim is empty, expected a claim's name";
  }
  if (files.jwt.algorithms.empty()) {
    return "auth-jwt-algorithms is empty, expected a list of algorithms";
  }
  return {};
}

CLI::Validator NewTokenCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        Identity identity;
        if (ParseNewToken(text, &identity)) return {};
        return absl::StrCat("is '", text,
                            "', expected a tenant's name without spaces, with =use or =admin "
                            "behind it if it is to have that role");
      },
      "TENANT[=ROLE]", "new token");
}

std::string NewTokenText(const std::string& text) {
  Identity identity;
  if (!ParseNewToken(text, &identity)) return {};
  const NewToken made = MakeToken(identity);
  return absl::StrCat(made.token, "\n", made.line, "\n");
}

}  // namespace attention::server
