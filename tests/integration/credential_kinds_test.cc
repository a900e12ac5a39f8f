// Each kind of credentials, over the wire: all that the service does works with it, and wrong ones
// of the kind are refused.
#include "absl/time/clock.h"
#include "tests/support/tenant_calls.h"

namespace attention::testing {
namespace {

// The service's seven variants.
std::vector<std::pair<const char*, v1::AttendRequest>> Variants() {
  const auto self = [](int num_q_heads, int num_kv_heads) {
    return MakeAttendRequest({.num_q_heads = num_q_heads,
                              .num_kv_heads = num_kv_heads,
                              .q_lens = {19},
                              .kv_lens = {19}});
  };
  std::vector<std::pair<const char*, v1::AttendRequest>> variants = {
      {"scaled dot-product", self(1, 1)},
      {"multi-head", self(4, 4)},
      {"cross", MakeAttendRequest({.q_lens = {5}, .kv_lens = {31}})},
      {"causal", self(4, 4)},
      {"sliding window", self(4, 4)},
      {"multi-query", self(4, 1)},
      {"grouped-query", self(4, 2)}};
  variants[3].second.mutable_config()->set_is_causal(true);
  variants[4].second.mutable_config()->set_window_left(7);
  variants[4].second.mutable_config()->set_window_right(0);
  return variants;
}

struct Kind {
  const char* name;
  Caller (*caller)(IdentityServer& server);
  // The token that a shared-memory request carries: this kind's, or none for a system's user. Null:
  // the kind cannot be shown there.
  std::string (*region_token)(IdentityServer& server);
};

class CredentialKindTest : public ::testing::TestWithParam<Kind> {
 protected:
  IdentityServer server_;
};

TEST_P(CredentialKindTest, AllThatTheServiceDoesWorks) {
  const Caller caller = GetParam().caller(server_);
  for (const auto& [name, request] : Variants()) EXPECT_TRUE(Attend(caller, request).ok()) << name;
  EXPECT_TRUE(AttendOnAStream(caller).ok());
  v1::SessionHandle handle;
  ASSERT_TRUE(Create(caller, &handle).ok());
  EXPECT_TRUE(Step(caller, handle).ok());
  EXPECT_TRUE(StepOnAStream(caller, handle).ok()) << "a replay";
  std::vector<std::string> ids;
  EXPECT_TRUE(List(caller, &ids).ok());
  EXPECT_THAT(ids, ::testing::ElementsAre(handle.session_id()));
  EXPECT_TRUE(Delete(caller, handle).ok());
  ASSERT_TRUE(CreateLayer(caller, "layer").ok());
  EXPECT_TRUE(ForwardRows(caller, "layer").ok());
  EXPECT_TRUE(ConvertLayer(caller, "layer").ok());
  EXPECT_TRUE(DeleteLayer(caller, "layer").ok());
  if (GetParam().region_token == nullptr) return;
  ChannelConnection connection(server_.channel_path());
  const auto region = CreateRegion(connection, "", GetParam().region_token(server_));
  ASSERT_TRUE(region.has_create()) << region.ShortDebugString();
  const SharedMemory memory(connection.TakeFd(), kRegionBytes, region.create().region_id());
  EXPECT_TRUE(AttendInto(caller, region.create().region_id()).ok());
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, CredentialKindTest,
    ::testing::Values(
        Kind{"Token", [](IdentityServer& server) { return server.Plain(server.acme.token); },
             [](IdentityServer& server) { return server.acme.token; }},
        Kind{"Jwt",
             [](IdentityServer& server) {
               return server.Plain(server.Jwt(IdentityServer::Claims("acme")));
             },
             [](IdentityServer& server) { return server.Jwt(IdentityServer::Claims("acme")); }},
        Kind{"Certificate",
             [](IdentityServer& server) {
               return server.WithCertificate(
                   server.clients.Issue(NamedByUri("spiffe://example.org/acme")));
             },
             nullptr},
        Kind{"User", [](IdentityServer& server) { return server.AtSocket(); },
             [](IdentityServer&) { return std::string(); }}),
    [](const auto& info) { return info.param.name; });

// A JSON Web Token's claims with one of them changed; null takes it out.
nlohmann::json With(const char* name, const nlohmann::json& value) {
  nlohmann::json claims = IdentityServer::Claims("acme");
  if (value.is_null()) {
    claims.erase(name);
  } else {
    claims[name] = value;
  }
  return claims;
}

TEST(JwtTest, ATokenIsItsTenants) {
  IdentityServer server;
  const Acme acme(server);
  EXPECT_TRUE(Get(server.Plain(server.Jwt(IdentityServer::Claims("acme"))), acme.handle).ok());
  const std::string rival = server.Jwt(IdentityServer::Claims("rival"));
  EXPECT_THAT(Get(server.Plain(rival), acme.handle), FailsWith(grpc::NOT_FOUND, ""));
  EXPECT_THAT(Get(server.Plain(rival, "acme"), acme.handle),
              FailsBecause(grpc::PERMISSION_DENIED, "TENANT_MISMATCH"));
}

TEST(JwtTest, WhatIsWrongIsRefusedAndNeverTold) {
  IdentityServer server;
  const std::int64_t now = absl::ToUnixSeconds(absl::Now());
  const nlohmann::json good = IdentityServer::Claims("acme");
  const JwtKey stranger = JwtKey::Ec("one"), unknown = JwtKey::Ec("three");
  const JwtKey secret = JwtKey::Symmetric("one");
  const std::pair<const char*, std::string> wrong[] = {
      {"not signed", UnsignedToken("none", good)},
      {"a secret's", secret.Sign("HS256", good)},
      {"another key of that id", stranger.Sign("ES256", good)},
      {"a key of no known id", unknown.Sign("ES256", good)},
      {"another issuer", server.Jwt(With("iss", "https://else.example.org"))},
      {"another audience", server.Jwt(With("aud", "storage"))},
      {"without an end", server.Jwt(With("exp", nullptr))},
      {"not yet", server.Jwt(With("nbf", now + 3600))},
      {"of nobody", server.Jwt(With("sub", nullptr))},
      {"of a number", server.Jwt(With("sub", 7))}};
  for (const auto& [name, token] : wrong) {
    EXPECT_THAT(Attend(server.Plain(token)),
                FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"))
        << name;
    EXPECT_THAT(server.process().Log(), ::testing::Not(::testing::HasSubstr(token))) << name;
  }
  EXPECT_THAT(Attend(server.Plain(server.Jwt(With("exp", now - 3600)))),
              FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_EXPIRED"));
  EXPECT_TRUE(Attend(server.Plain(server.Jwt(good))).ok());
}

TEST(JwtTest, AKeyThatIsTakenOutOfTheSetSignsNothingAnyMore) {
  IdentityServer server;
  const JwtKey next = JwtKey::Rsa("next");
  const std::string before = server.Jwt(IdentityServer::Claims("acme"));
  const std::string after = next.Sign("RS256", IdentityServer::Claims("acme"));
  EXPECT_THAT(Attend(server.Plain(after)),
              FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
  server.Write("keys", KeySet({server.jwt_key.PublicJson(), next.PublicJson()}));
  EXPECT_TRUE(server.AwaitLog("auth-jwt-keys has changed and is in use"));
  EXPECT_TRUE(Attend(server.Plain(before)).ok());
  EXPECT_TRUE(Attend(server.Plain(after)).ok());
  server.Write("keys", KeySet({}));
  EXPECT_TRUE(server.AwaitLog("auth-jwt-keys has changed and is not used"));
  EXPECT_TRUE(Attend(server.Plain(before)).ok()) << "a set without a key is not taken";
  server.Write("keys", KeySet({next.PublicJson()}));
  EXPECT_TRUE(WaitUntil([&] { return !Attend(server.Plain(before)).ok(); }));
  EXPECT_THAT(Attend(server.Plain(before)),
              FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
  EXPECT_TRUE(Attend(server.Plain(after)).ok());
}

}  // namespace
}  // namespace attention::testing
