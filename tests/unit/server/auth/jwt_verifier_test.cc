#include "server/auth/jwt_verifier.h"

#include <gmock/gmock.h>

#include "absl/strings/str_split.h"
#include "server/base/error_reason.h"
#include "tests/support/jwt.h"

namespace attention::server {
namespace {

using ::attention::testing::JwtKey;
using ::attention::testing::KeySet;
using ::attention::testing::UnsignedToken;
using ::nlohmann::json;
using ::testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);
constexpr std::int64_t kNowSeconds = 1'800'000'000;

class JwtVerifierTest : public ::testing::Test {
 protected:
  JwtVerifierTest() {
    rules_.issuer = "https://issuer.example.org";
    rules_.audience = "attention";
    rules_.role_claim = "roles";
  }

  static const JwtKey& Rsa() {
    static const auto* key = new JwtKey(JwtKey::Rsa("rsa"));
    return *key;
  }
  static const JwtKey& Ec() {
    static const auto* key = new JwtKey(JwtKey::Ec("ec"));
    return *key;
  }

  json Claims(const json& changes = json::object()) const {
    json claims = {{"iss", rules_.issuer},
                   {"aud", rules_.audience},
                   {"sub", "acme"},
                   {"exp", kNowSeconds + 600}};
    for (const auto& [name, value] : changes.items()) {
      if (value.is_null()) {
        claims.erase(name);
      } else {
        claims[name] = value;
      }
    }
    return claims;
  }

  absl::StatusOr<Identity> Verify(const std::string& token, const std::string& keys) const {
    const auto verifier = JwtVerifier::Create(rules_, keys);
    EXPECT_TRUE(verifier.ok()) << verifier.status();
    return verifier->Verify(token, kNow);
  }
  absl::StatusOr<Identity> Verify(const std::string& token) const {
    return Verify(token, KeySet({Rsa().PublicJson(), Ec().PublicJson()}));
  }

  void ExpectRefused(const std::string& token, absl::string_view message,
                     absl::string_view reason = "CREDENTIALS_INVALID") const {
    const absl::Status status = Verify(token).status();
    EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(message)));
    const auto detail = GetErrorDetail(status);
    ASSERT_TRUE(detail.has_value());
    EXPECT_EQ(detail->reason, reason);
  }

  JwtRules rules_;
};

TEST_F(JwtVerifierTest, ASignedTokenNamesTenantAndRole) {
  EXPECT_EQ(*Verify(Rsa().Sign("RS256", Claims())), (Identity{"acme", Role::kUse}));
  EXPECT_EQ(*Verify(Ec().Sign("ES256", Claims({{"roles", "admin"}}))),
            (Identity{"acme", Role::kAdmin}));
  EXPECT_EQ(Verify(Ec().Sign("ES256", Claims({{"roles", {"x", "admin"}}})))->role, Role::kAdmin);
  EXPECT_EQ(Verify(Ec().Sign("ES256", Claims({{"roles", {"x", "administrator"}}})))->role,
            Role::kUse);
  EXPECT_TRUE(Verify(Rsa().Sign("RS256", Claims({{"aud", {"a", "attention"}}}))).ok());
  rules_.tenant_claim = "org";
  EXPECT_EQ(Verify(Rsa().Sign("RS256", Claims({{"org", "other"}})))->tenant, "other");
}

TEST_F(JwtVerifierTest, ATokenWithoutAKeyIdIsTriedWithEachKey) {
  const JwtKey nameless = JwtKey::Ec("");
  EXPECT_TRUE(Verify(nameless.Sign("ES256", Claims()),
                     KeySet({Rsa().PublicJson(), Ec().PublicJson(), nameless.PublicJson()}))
                  .ok());
}

TEST_F(JwtVerifierTest, NobodyButAKeyOfTheSetCanSign) {
  ExpectRefused(UnsignedToken("none", Claims()), "algorithm");
  ExpectRefused(UnsignedToken("None", Claims()), "neither known");
  ExpectRefused(UnsignedToken("RS256", Claims()), "no");
  const JwtKey stranger = JwtKey::Ec("ec");  // with an id that is known
  ExpectRefused(stranger.Sign("ES256", Claims()), "no key of the key set");
  const JwtKey unknown = JwtKey::Ec("unknown");
  ExpectRefused(unknown.Sign("ES256", Claims()), "no key of the key set");
  // A good token under the id of another key.
  ExpectRefused(Rsa().Sign("RS256", Claims(), {{"kid", "ec"}}), "no key of the key set");
}

TEST_F(JwtVerifierTest, AlgorithmsAreThoseThatAreListed) {
  ExpectRefused(Rsa().Sign("RS512", Claims()), "algorithm");
  ExpectRefused(Rsa().Sign("PS256", Claims()), "algorithm");
  ExpectRefused(JwtKey::Symmetric("rsa").Sign("HS256", Claims()), "algorithm");
  rules_.algorithms = {"RS512"};
  EXPECT_TRUE(Verify(Rsa().Sign("RS512", Claims())).ok());
  EXPECT_TRUE(IsJwtAlgorithm("PS384"));
  for (const char* name : {"none", "HS256", "EdDSA", "RS", "RS255", "ES25", ""}) {
    EXPECT_FALSE(IsJwtAlgorithm(name)) << name;
  }
}

TEST_F(JwtVerifierTest, AKeyIsUsedForItsOwnAlgorithmAlone) {
  json only_512 = Rsa().PublicJson();
  only_512["alg"] = "RS512";
  EXPECT_FALSE(Verify(Rsa().Sign("RS256", Claims()), KeySet({only_512})).ok());
  json for_encryption = Ec().PublicJson();
  for_encryption["use"] = "enc";
  EXPECT_FALSE(
      Verify(Ec().Sign("ES256", Claims()), KeySet({for_encryption, Rsa().PublicJson()})).ok());
}

TEST_F(JwtVerifierTest, IssuerAudienceAndTimesAreChecked) {
  ExpectRefused(Rsa().Sign("RS256", Claims({{"iss", "https://issuer.example.org/"}})), "issuer");
  ExpectRefused(Rsa().Sign("RS256", Claims({{"iss", nullptr}})), "issuer");
  ExpectRefused(Rsa().Sign("RS256", Claims({{"aud", "other"}})), "audience");
  ExpectRefused(Rsa().Sign("RS256", Claims({{"aud", nullptr}})), "audience");
  ExpectRefused(Rsa().Sign("RS256", Claims({{"exp", nullptr}})), "`exp`");
  ExpectRefused(Rsa().Sign("RS256", Claims({{"exp", "tomorrow"}})), "`exp`");
  ExpectRefused(Rsa().Sign("RS256", Claims({{"exp", kNowSeconds - 61}})), "has expired",
                "CREDENTIALS_EXPIRED");
  ExpectRefused(Rsa().Sign("RS256", Claims({{"nbf", kNowSeconds + 61}})), "not valid yet");
  ExpectRefused(Rsa().Sign("RS256", Claims({{"nbf", "soon"}})), "not valid yet");
  // Within the skew of clocks.
  EXPECT_TRUE(Verify(Rsa().Sign("RS256", Claims({{"exp", kNowSeconds - 59}}))).ok());
  EXPECT_TRUE(Verify(Rsa().Sign("RS256", Claims({{"nbf", kNowSeconds + 59}}))).ok());
}

TEST_F(JwtVerifierTest, TheTenantsClaimMustNameOne) {
  for (const json& sub :
       {json(nullptr), json(""), json(3), json("a\nb"), json(std::string(129, 'a'))}) {
    ExpectRefused(Rsa().Sign("RS256", Claims({{"sub", sub}})), "names no tenant");
  }
}

TEST_F(JwtVerifierTest, AnythingElseIsRefusedToo) {
  const std::string good = Rsa().Sign("RS256", Claims());
  const std::vector<std::string> parts = absl::StrSplit(good, '.');
  ExpectRefused("", "neither known");
  ExpectRefused("..", "neither known");
  ExpectRefused(parts[0] + "." + parts[1], "neither known");
  ExpectRefused(good + ".x", "neither known");
  ExpectRefused(std::string(10000, 'a'), "too long");
  ExpectRefused(parts[0] + "." + parts[1] + "." + std::string(parts[2].rbegin(), parts[2].rend()),
                "");
  const std::string other = Rsa().Sign("RS256", Claims({{"sub", "other"}}));
  const std::vector<std::string> other_parts = absl::StrSplit(other, '.');
  ExpectRefused(parts[0] + "." + other_parts[1] + "." + parts[2], "no key of the key set");
  ExpectRefused(Rsa().Sign("RS256", Claims(), {{"crit", {"b64"}}, {"b64", false}}), "crit");
  ExpectRefused(Rsa().Sign("RS256", json("text")), "no object");
}

TEST_F(JwtVerifierTest, AWrongKeySetIsRefused) {
  json empty_rsa = Rsa().PublicJson();
  empty_rsa["n"] = "";
  const struct {
    std::string text;
    const char* message;
  } cases[] = {
      {"", "is no key set"},
      {"{\"keys\": 3}", "is no key set"},
      {KeySet({Rsa().PublicJson()}).substr(0, 100), "is no key set"},
      {KeySet({}), "has 0 keys"},
      {KeySet({json(3)}), "keys[0] is no object"},
      {KeySet({Rsa().PublicJson(), JwtKey::Symmetric("s").PrivateJson()}),
       "keys[1] is of another kind"},
      {KeySet({Rsa().PrivateJson()}), "keys[0] holds a private key"},
      {KeySet({empty_rsa}), "keys[0] is no valid public key"},
  };
  for (const auto& [text, message] : cases) {
    const auto verifier = JwtVerifier::Create(rules_, text);
    EXPECT_TRUE(absl::IsInvalidArgument(verifier.status())) << text;
    EXPECT_THAT(std::string(verifier.status().message()), HasSubstr(message)) << text;
  }
}

}  // namespace
}  // namespace attention::server
