// Whose certificates and whose users of this system belong to which tenant, from a file (TOML):
//
//   [[certificate]]
//   uri = "spiffe://example.org/engine"  # a URI among its subject alternative names; or
//   dns = "engine.example.org"           # a DNS name among them
//   tenant = "acme"
//   role = "use"                         # the default; or "admin"
//
//   [[user]]                             # who connects to a unix socket
//   uid = 1000                           # and, or instead, gid = 1000
//   tenant = "acme"
//
// Thread-safety: const methods.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/identity.h"

namespace attention::server {

class IdentityMap {
 public:
  // INVALID_ARGUMENT names the line and what is wrong with it; a name that stands twice is wrong.
  static absl::StatusOr<IdentityMap> Parse(absl::string_view text);

  // The identity for names of a certificate that the listener's authorities have signed: URIs
  // before DNS names. Nothing when none of them is listed.
  std::optional<Identity> OfCertificate(const std::vector<std::string>& uris,
                                        const std::vector<std::string>& dns_names) const;
  // The identity of a user of this system: the first entry of the file that fits.
  std::optional<Identity> OfUser(std::uint32_t uid, std::uint32_t gid) const;

  // True if an entry gives the identity to a user.
  bool HasUserOf(const Identity& identity) const;

  bool has_certificates() const { return !uris_.empty() || !dns_names_.empty(); }
  bool has_users() const { return !users_.empty(); }

 private:
  struct User {
    std::optional<std::uint32_t> uid;
    std::optional<std::uint32_t> gid;
    Identity identity;

    bool operator==(const User& other) const { return uid == other.uid && gid == other.gid; }
  };
  class Reader;

  std::unordered_map<std::string, Identity> uris_;
  std::unordered_map<std::string, Identity> dns_names_;  // in lower case
  std::vector<User> users_;
};

}  // namespace attention::server
