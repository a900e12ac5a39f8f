// Decides who makes a call, from what the call and its connection show.
//
// Credentials come from files, which are read again when they change; what is wrong is not taken,
// and the credentials before it stay. Without any file nobody has credentials: who calls then names
// the tenant that they are (open mode).
//
// Thread-safety: all methods. A check takes no lock that a reload holds while it reads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/auth/identity.h"
#include "server/auth/identity_map.h"
#include "server/auth/jwt_verifier.h"
#include "server/auth/token_table.h"
#include "server/base/mutex.h"
#include "server/base/watched_file.h"

namespace attention::server {

struct CertificateNames {
  std::vector<std::string> uris = {};
  std::vector<std::string> dns_names = {};
};

// A call's credentials, as it shows them.
struct Credentials {
  // The metadata entry `authorization`; absent: there is none.
  std::optional<absl::string_view> authorization = {};
  // Reads the client certificate's names; asked only where a certificate could decide. Null, or
  // nothing from it: there is no certificate that one of the listener's authorities has signed.
  std::function<std::optional<CertificateNames>()> read_certificate = {};
  // The owner of a connection that belongs to somebody: the user at a unix socket.
  const Identity* of_connection = nullptr;
  // The tenant that the call names (metadata `attention-tenant`); absent: it names none.
  std::optional<absl::string_view> tenant = {};
};

struct AuthFiles {
  std::string tokens = {};      // TokenTable
  std::string identities = {};  // IdentityMap
  std::string jwt_keys = {};    // a JWKS
  JwtRules jwt = {};

  bool any() const { return !tokens.empty() || !identities.empty() || !jwt_keys.empty(); }
};

class Authenticator {
 public:
  // The tenant of open mode's calls that name none.
  static constexpr char kDefaultTenant[] = "default";

  // INVALID_ARGUMENT names the file and what is wrong with it.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Create(AuthFiles files);

  bool is_open() const { return !files_.any(); }

  // The caller. A token decides before a certificate, and that before the connection.
  //   UNAUTHENTICATED    CREDENTIALS_MISSING, CREDENTIALS_INVALID or CREDENTIALS_EXPIRED
  //   PERMISSION_DENIED  TENANT_MISMATCH: the call names another tenant than its credentials
  absl::StatusOr<Identity> Check(const Credentials& credentials, absl::Time now) const;

  // The identity of a user at a unix socket; nothing when the file lists no such user.
  std::optional<Identity> OfUser(std::uint32_t uid, std::uint32_t gid) const;
  bool has_users() const;

  struct Reloaded {
    const char* setting;
    absl::Status status;  // OK: it is in use from now on; else what was in use before still is
  };
  // Reads again the files that have changed since they were last read, and tells which. From one
  // thread; to be called every second or so.
  std::vector<Reloaded> ReloadChanged();

 private:
  // The files' contents, never changed once they are in use.
  struct Rules {
    std::shared_ptr<const TokenTable> tokens;
    std::shared_ptr<const IdentityMap> identities;
    std::shared_ptr<const JwtVerifier> jwt;
  };

  struct Source {
    const char* setting;
    WatchedFile file;
    absl::StatusOr<Rules> (Authenticator::*with)(const std::string& text) const;
  };

  explicit Authenticator(AuthFiles files);

  absl::Status Load(Source& source);
  std::shared_ptr<const Rules> rules() const;
  // The rules with the file's new content.
  absl::StatusOr<Rules> WithTokens(const std::string& text) const;
  absl::StatusOr<Rules> WithIdentities(const std::string& text) const;
  absl::StatusOr<Rules> WithJwtKeys(const std::string& text) const;
  absl::StatusOr<Identity> OfToken(const Rules& rules, absl::string_view authorization,
                                   absl::Time now) const;
  absl::StatusOr<Identity> OfCaller(const Credentials& credentials, absl::Time now) const;
  // Nothing: no certificate decides, and what else the call shows does.
  static absl::StatusOr<std::optional<Identity>> OfCertificate(const Rules& rules,
                                                               const Credentials& credentials);

  const AuthFiles files_;
  std::vector<Source> sources_;
  mutable Mutex mutex_;
  std::shared_ptr<const Rules> rules_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
