// JSON Web Tokens (RFC 7519), signed by a key of a key set (RFC 7517).
//
// Signatures are cjose's; this decides which are looked at: the algorithm is one that the
// configuration lists and the key's own, the key one of the set's (by `kid`, where the token names
// one). Symmetric keys are refused in a key set: who can check such a token can make it.
//
// Thread-safety: const methods.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/auth/identity.h"

namespace attention::server {

struct JwtRules {
  std::string issuer;    // what `iss` must be
  std::string audience;  // what `aud` must be, or hold
  std::vector<std::string> algorithms = {"RS256", "ES256"};
  absl::Duration clock_skew = absl::Minutes(1);
  std::string tenant_claim = "sub";
  // The claim that says "use" or "admin", or a list of such words; without it a caller has the role
  // use. Empty: all have.
  std::string role_claim;
};

// The algorithms that can be listed: RS, PS and ES with 256, 384 or 512 bits.
bool IsJwtAlgorithm(absl::string_view name);

class JwtVerifier {
 public:
  // `key_set` is the text of a JWKS. INVALID_ARGUMENT says which key is wrong and why; a set
  // without a key is wrong.
  static absl::StatusOr<JwtVerifier> Create(JwtRules rules, const std::string& key_set);
  ~JwtVerifier();
  JwtVerifier(JwtVerifier&&) noexcept;
  JwtVerifier& operator=(JwtVerifier&&) noexcept;

  // UNAUTHENTICATED with reason CREDENTIALS_INVALID, or CREDENTIALS_EXPIRED for a token that is
  // good but no longer valid. No message repeats anything of the token.
  absl::StatusOr<Identity> Verify(absl::string_view token, absl::Time now) const;

 private:
  struct Key;

  JwtVerifier(JwtRules rules, std::vector<Key> keys);
  // The identity of a token with these claims, whose signature is good.
  absl::StatusOr<Identity> IdentityOf(absl::string_view payload, absl::Time now) const;

  JwtRules rules_;
  std::vector<Key> keys_;
};

}  // namespace attention::server
