#include "server/open_mode.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"
#include "server/listener/listener.h"

namespace attention::server {

absl::Status CheckOpenMode(const ServerConfig& config) {
  if (config.auth.any() || config.trust_tenant_names_from_network) return absl::OkStatus();
  for (const std::string& text : config.listen) {
    ATTENTION_ASSIGN_OR_RETURN(const Listener listener, ParseListener(text));
    if (listener.is_local()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "listen is ", Quoted(listener.address), ", which other hosts may reach, and nobody needs ",
        "credentials: any caller could say to be any tenant. Expected auth-tokens, "
        "auth-identities ",
        "or auth-jwt-keys; or trust-tenant-names-from-network, if all who can reach the address "
        "may"));
  }
  return absl::OkStatus();
}

}  // namespace attention::server
