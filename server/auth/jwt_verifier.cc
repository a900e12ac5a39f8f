#include "server/auth/jwt_verifier.h"

#include <cjose/cjose.h>
#include <openssl/err.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/auth/refusal.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

using Json = nlohmann::json;
using Jwk = std::unique_ptr<cjose_jwk_t, decltype(&cjose_jwk_release)>;
using Jws = std::unique_ptr<cjose_jws_t, decltype(&cjose_jws_release)>;

constexpr std::size_t kMaxTokenBytes = 8192;  // of all metadata of a call gRPC takes no more
constexpr std::size_t kMaxKeys = 256;

// The kind of keys that an algorithm goes with: "RSA" or "EC"; empty for one that is not taken.
absl::string_view KindFor(absl::string_view algorithm) {
  constexpr absl::string_view kBits[] = {"256", "384", "512"};
  if (algorithm.size() != 5) return "";
  if (std::find(std::begin(kBits), std::end(kBits), algorithm.substr(2)) == std::end(kBits)) {
    return "";
  }
  const absl::string_view family = algorithm.substr(0, 2);
  if (family == "RS" || family == "PS") return "RSA";
  return family == "ES" ? "EC" : "";
}

// ES256 goes with P-256 alone, and so on (RFC 7518, 3.4).
absl::string_view CurveFor(absl::string_view algorithm) {
  if (algorithm == "ES256") return "P-256";
  if (algorithm == "ES384") return "P-384";
  return algorithm == "ES512" ? "P-521" : "";
}

std::string TextAt(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// NumericDate: seconds since 1970, which may have a fraction.
std::optional<absl::Time> TimeAt(const Json& claims, const char* name) {
  const auto found = claims.find(name);
  if (found == claims.end() || !found->is_number()) return std::nullopt;
  return absl::UnixEpoch() + absl::Seconds(found->get<double>());
}

// A claim that is the text, or a list that holds it.
bool Holds(const Json& claims, const std::string& name, const std::string& text) {
  const auto found = claims.find(name);
  if (found == claims.end()) return false;
  if (found->is_string()) return found->get<std::string>() == text;
  return found->is_array() && std::find(found->begin(), found->end(), Json(text)) != found->end();
}

absl::Status CheckTimes(const Json& claims, absl::Duration skew, absl::Time now) {
  const std::optional<absl::Time> end = TimeAt(claims, "exp");
  if (!end) return InvalidCredentials("the token has no time `exp` of its end");
  if (now >= *end + skew) return ExpiredCredentials("the token has expired");
  if (!claims.contains("nbf")) return absl::OkStatus();
  const std::optional<absl::Time> begin = TimeAt(claims, "nbf");
  if (begin && now >= *begin - skew) return absl::OkStatus();
  return InvalidCredentials("the token is not valid yet (`nbf`)");
}

absl::Status CheckKey(const Json& key, std::size_t index) {
  const auto wrong = [index](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("keys[", index, "] ", what));
  };
  if (!key.is_object()) return wrong("is no object");
  const std::string kind = TextAt(key, "kty");
  if (kind != "RSA" && kind != "EC") {
    return wrong(
        "is of another kind (`kty`) than RSA and EC: a symmetric key makes tokens as well");
  }
  if (key.contains("d")) return wrong("holds a private key (`d`), expected the public one alone");
  return absl::OkStatus();
}

bool IsForSignatures(const Json& key) {
  return !key.contains("use") || TextAt(key, "use") == "sig";
}

}  // namespace

struct JwtVerifier::Key {
  std::string id;         // `kid`; may be empty
  std::string algorithm;  // `alg`; empty: any of its kind
  std::string kind;       // `kty`
  std::string curve;      // `crv`
  Jwk key{nullptr, cjose_jwk_release};

  bool IsFor(absl::string_view wanted_algorithm, absl::string_view wanted_id) const {
    return (wanted_id.empty() || id == wanted_id) && kind == KindFor(wanted_algorithm) &&
           curve == CurveFor(wanted_algorithm) &&
           (algorithm.empty() || algorithm == wanted_algorithm);
  }
};

bool IsJwtAlgorithm(absl::string_view name) { return !KindFor(name).empty(); }

JwtVerifier::JwtVerifier(JwtRules rules, std::vector<Key> keys)
    : rules_(std::move(rules)), keys_(std::move(keys)) {}
JwtVerifier::~JwtVerifier() = default;
JwtVerifier::JwtVerifier(JwtVerifier&&) noexcept = default;
JwtVerifier& JwtVerifier::operator=(JwtVerifier&&) noexcept = default;

absl::StatusOr<JwtVerifier> JwtVerifier::Create(JwtRules rules, const std::string& key_set) {
  const Json set = Json::parse(key_set, nullptr, /*allow_exceptions=*/false);
  if (!set.is_object() || !set.contains("keys") || !set["keys"].is_array()) {
    return absl::InvalidArgumentError("is no key set, expected an object with a list `keys`");
  }
  std::vector<Key> keys;
  for (std::size_t i = 0; i < set["keys"].size(); ++i) {
    const Json& json = set["keys"][i];
    ATTENTION_RETURN_IF_ERROR(CheckKey(json, i));
    if (!IsForSignatures(json)) continue;
    const std::string text = json.dump();
    cjose_err error{};
    Jwk key(cjose_jwk_import(text.data(), text.size(), &error), cjose_jwk_release);
    ERR_clear_error();
    if (key == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("keys[", i, "] is no valid public key"));
    }
    keys.push_back({TextAt(json, "kid"), TextAt(json, "alg"), TextAt(json, "kty"),
                    TextAt(json, "crv"), std::move(key)});
  }
  if (keys.empty() || keys.size() > kMaxKeys) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", keys.size(), " keys for signatures, expected 1 to ", kMaxKeys));
  }
  return JwtVerifier(std::move(rules), std::move(keys));
}

absl::StatusOr<Identity> JwtVerifier::Verify(absl::string_view token, absl::Time now) const {
  if (token.size() > kMaxTokenBytes) return InvalidCredentials("the token is too long");
  cjose_err error{};
  const Jws jws(cjose_jws_import(token.data(), token.size(), &error), cjose_jws_release);
  ERR_clear_error();
  if (jws == nullptr) return InvalidCredentials("the token is neither known nor a JSON Web Token");
  cjose_header_t* header = cjose_jws_get_protected(jws.get());
  const auto field = [header](const char* name) {
    cjose_err ignored{};
    const char* value = cjose_header_get(header, name, &ignored);
    return std::string(value == nullptr ? "" : value);
  };
  const std::string algorithm = field(CJOSE_HDR_ALG);
  if (std::find(rules_.algorithms.begin(), rules_.algorithms.end(), algorithm) ==
      rules_.algorithms.end()) {
    return InvalidCredentials("the token's algorithm is none of those that are taken");
  }
  // Extensions that must be understood (RFC 7515, 4.1.11): none are.
  cjose_err ignored{};
  char* critical = cjose_header_get_raw(header, "crit", &ignored);
  const bool is_critical = critical != nullptr;
  std::free(critical);
  if (is_critical) return InvalidCredentials("the token asks for extensions (`crit`)");
  const std::string key_id = field(CJOSE_HDR_KID);
  const bool is_signed = std::any_of(keys_.begin(), keys_.end(), [&](const Key& key) {
    return key.IsFor(algorithm, key_id) && cjose_jws_verify(jws.get(), key.key.get(), &ignored);
  });
  ERR_clear_error();
  if (!is_signed) return InvalidCredentials("no key of the key set has signed the token");
  std::uint8_t* payload = nullptr;
  std::size_t size = 0;
  if (!cjose_jws_get_plaintext(jws.get(), &payload, &size, &ignored)) {
    return InvalidCredentials("the token holds no claims");
  }
  return IdentityOf({reinterpret_cast<const char*>(payload), size}, now);
}

absl::StatusOr<Identity> JwtVerifier::IdentityOf(absl::string_view payload, absl::Time now) const {
  const Json claims = Json::parse(payload, nullptr, /*allow_exceptions=*/false);
  if (!claims.is_object()) return InvalidCredentials("the token's claims are no object");
  if (TextAt(claims, "iss") != rules_.issuer)
    return InvalidCredentials("the token's issuer is another");
  if (!Holds(claims, "aud", rules_.audience)) {
    return InvalidCredentials("the token is for another audience");
  }
  ATTENTION_RETURN_IF_ERROR(CheckTimes(claims, rules_.clock_skew, now));
  Identity identity;
  identity.tenant = TextAt(claims, rules_.tenant_claim.c_str());
  if (!IsTenantName(identity.tenant)) {
    return InvalidCredentials(
        absl::StrCat("the token's claim ", Quoted(rules_.tenant_claim), " names no tenant"));
  }
  if (!rules_.role_claim.empty() && Holds(claims, rules_.role_claim, "admin")) {
    identity.role = Role::kAdmin;
  }
  return identity;
}

}  // namespace attention::server
