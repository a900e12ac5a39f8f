// Callers with no, wrong and right credentials of each kind, and what each can do to another
// tenant: the cells of the table in docs/identity.md.
#include <csignal>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/support/raw_call.h"
#include "tests/support/tenant_calls.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Optional;

std::vector<std::string> IdsOf(const Caller& caller) {
  std::vector<std::string> ids;
  EXPECT_TRUE(List(caller, &ids).ok());
  return ids;
}

class IdentityTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { shared_ = new IdentityServer; }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }
  IdentityServer& server() { return *shared_; }

 private:
  static IdentityServer* shared_;
};
IdentityServer* IdentityTest::shared_ = nullptr;

TEST_F(IdentityTest, WithoutCredentialsNothingIsDone) {
  const Acme acme(server());
  for (const auto& [name, deed] : Deeds(acme)) {
    for (const Caller& caller : {server().Plain(), server().Plain("", "acme")}) {
      EXPECT_THAT(deed(caller), FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_MISSING")) << name;
    }
  }
  acme.ExpectUntouched();
}

TEST_F(IdentityTest, WithWrongCredentialsNothingIsDone) {
  const Acme acme(server());
  const std::string of_acme = server().acme.token;
  const std::string changed = of_acme.substr(0, of_acme.size() - 1) + "x";
  for (const auto& [name, deed] : Deeds(acme)) {
    for (const std::string& token : {std::string("guess"), changed, of_acme + "0"}) {
      EXPECT_THAT(deed(server().Plain(token, "acme")),
                  FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"))
          << name;
    }
  }
  acme.ExpectUntouched();
  EXPECT_THAT(server().process().Log(), Not(HasSubstr(of_acme)));
  EXPECT_THAT(server().process().Log(), Not(HasSubstr(changed)));
}

TEST_F(IdentityTest, RightCredentialsOfAnotherDoNotGiveItsTenant) {
  const Acme acme(server());
  for (const auto& [name, deed] : Deeds(acme)) {
    for (const std::string& token : {server().rival.token, server().ops.token}) {
      EXPECT_THAT(deed(server().Plain(token, "acme")),
                  FailsBecause(grpc::PERMISSION_DENIED, "TENANT_MISMATCH"))
          << name;
    }
  }
  acme.ExpectUntouched();
}

TEST_F(IdentityTest, RightCredentialsReachOnlyWhatIsTheirOwn) {
  const Acme acme(server());
  const Caller callers[] = {
      server().Plain(server().rival.token),
      server().WithCertificate(server().clients.Issue(NamedByDns("rival.example.org"))),
      server().AtSocket(),
  };
  for (const Caller& caller : callers) {
    EXPECT_THAT(Get(caller, acme.handle), FailsWith(grpc::NOT_FOUND, ""));
    EXPECT_THAT(Step(caller, acme.handle), FailsWith(grpc::NOT_FOUND, ""));
    EXPECT_THAT(StepOnAStream(caller, acme.handle), FailsWith(grpc::NOT_FOUND, ""));
    EXPECT_TRUE(Delete(caller, acme.handle).ok()) << "of nothing of the caller's";
    EXPECT_THAT(IdsOf(caller), Not(::testing::Contains(acme.handle.session_id())));
    EXPECT_THAT(GetLayer(caller, acme.layer_id), FailsWith(grpc::NOT_FOUND, ""));
    EXPECT_THAT(ConvertLayer(caller, acme.layer_id), FailsWith(grpc::NOT_FOUND, ""));
    EXPECT_THAT(ForwardRows(caller, acme.layer_id), FailsWith(grpc::NOT_FOUND, ""));
    DeleteLayer(caller, acme.layer_id);
    EXPECT_THAT(AttendInto(caller, acme.region_id), FailsWith(grpc::NOT_FOUND, ""));
    // And are good for the caller's own.
    EXPECT_TRUE(Attend(caller).ok());
    EXPECT_TRUE(AttendOnAStream(caller).ok());
    v1::SessionHandle handle;
    ASSERT_TRUE(Create(caller, &handle).ok());
    EXPECT_TRUE(Step(caller, handle).ok());
    EXPECT_TRUE(StepOnAStream(caller, handle).ok()) << "a replay";
    EXPECT_THAT(IdsOf(caller), ::testing::Contains(handle.session_id()));
    EXPECT_TRUE(Delete(caller, handle).ok());
    EXPECT_TRUE(CreateLayer(caller, acme.layer_id).ok()) << "a name of each tenant's";
    EXPECT_TRUE(DeleteLayer(caller, acme.layer_id).ok());
    EXPECT_TRUE(Info(caller).ok());
  }
  acme.ExpectUntouched();
}

TEST_F(IdentityTest, ATenantIsOneWhateverItsCredentials) {
  const Acme acme(server());
  const Caller caller =
      server().WithCertificate(server().clients.Issue(NamedByUri("spiffe://example.org/acme")));
  EXPECT_TRUE(Get(caller, acme.handle).ok());
  EXPECT_TRUE(GetLayer(caller, acme.layer_id).ok());
  // A token decides before the socket's user.
  EXPECT_TRUE(Get(server().AtSocket(server().acme.token), acme.handle).ok());
  EXPECT_THAT(Get(server().AtSocket("guess"), acme.handle),
              FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
}

TEST_F(IdentityTest, CertificatesThatNobodyVouchesForDoNotConnect) {
  const CertificateOptions of_acme = NamedByUri("spiffe://example.org/acme");
  const CertificateAuthority stranger("clients");
  const CertifiedKey certificates[] = {stranger.Issue(of_acme),
                                       SelfSigned(of_acme),
                                       server().clients.Issue(Expired(of_acme)),
                                       server().clients.Issue(NotYetValid(of_acme)),
                                       {}};
  for (const CertifiedKey& certificate : certificates) {
    EXPECT_THAT(Attend(server().WithCertificate(certificate)), FailsWith(grpc::UNAVAILABLE, ""));
  }
  EXPECT_THAT(Attend(server().WithCertificate(
                  server().clients.Issue(NamedByUri("spiffe://example.org/acme/x")))),
              FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
}

TEST_F(IdentityTest, SharedMemoryIsItsCallersTenants) {
  ChannelConnection connection(server().channel_path());
  // The user's own tenant, and that of a token.
  const auto own = CreateRegion(connection, "", "");
  ASSERT_TRUE(own.has_create());
  const SharedMemory memory(connection.TakeFd(), kRegionBytes, own.create().region_id());
  EXPECT_TRUE(AttendInto(server().AtSocket(), own.create().region_id()).ok());
  EXPECT_THAT(AttendInto(server().Plain(server().acme.token), own.create().region_id()),
              FailsBecause(grpc::NOT_FOUND, "REGION_NOT_FOUND"));
  const auto refusal = [&](const std::string& tenant, const std::string& token) {
    return CreateRegion(connection, tenant, token).error().reason();
  };
  EXPECT_EQ(refusal("acme", ""), "TENANT_MISMATCH");
  EXPECT_EQ(refusal("", "guess"), "CREDENTIALS_INVALID");
  EXPECT_EQ(refusal("acme", server().rival.token), "TENANT_MISMATCH");
}

TEST_F(IdentityTest, HealthNeedsNoCredentials) {
  EXPECT_EQ(server().process().client().Get("/readyz").status, 200);
  std::string answer;
  EXPECT_TRUE(CallRaw(server().Plain().channel, "/grpc.health.v1.Health/Check", "", &answer).ok());
  EXPECT_EQ(answer, "\x08\x01") << "SERVING";
}

TEST(IdentityReloadTest, ATokenThatIsTakenOutOfTheFileIsRefused) {
  IdentityServer server;
  const Caller acme = server.Plain(server.acme.token);
  ASSERT_TRUE(Attend(acme).ok());
  server.Write("tokens", server.rival.line.substr(0, 20));
  EXPECT_TRUE(server.AwaitLog("auth-tokens has changed and is not used"));
  EXPECT_TRUE(Attend(acme).ok());
  const server::NewToken added = server::MakeToken({"new", server::Role::kUse});
  server.WriteTokens({server.rival, added});
  EXPECT_TRUE(server.AwaitLog("auth-tokens has changed and is in use"));
  EXPECT_THAT(Attend(acme), FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
  EXPECT_TRUE(Attend(server.Plain(added.token)).ok());
}

TEST(IdentityReloadTest, CertificatesAreRenewedWithoutARestart) {
  IdentityServer server;
  const CertifiedKey client = server.clients.Issue(NamedByUri("spiffe://example.org/acme"));
  const Caller before = server.WithCertificate(client);
  ASSERT_TRUE(Attend(before).ok());
  // A key that does not fit is not used.
  server.Write("server.key", NewPrivateKey());
  EXPECT_TRUE(server.AwaitLog("have changed and are not used"));
  EXPECT_TRUE(Attend(server.WithCertificate(client)).ok());
  server.WriteServerCertificate(server.servers.Issue());
  EXPECT_TRUE(server.AwaitLog("have changed and are in use"));
  EXPECT_TRUE(Attend(server.WithCertificate(client)).ok());
  // Other client authorities: new connections need a certificate of theirs.
  const CertificateAuthority others("others");
  server.Write("clients.pem", others.certificate());
  EXPECT_TRUE(WaitUntil([&] { return !Attend(server.WithCertificate(client)).ok(); }));
  EXPECT_TRUE(WaitUntil([&] {
    return Attend(server.WithCertificate(others.Issue(NamedByUri("spiffe://example.org/acme"))))
        .ok();
  }));
  // A connection stays, but its certificate is looked up at each call.
  EXPECT_TRUE(Attend(before).ok());
  server.Write("identities", "[[certificate]]\nuri = 'spiffe://x'\ntenant = 'x'\n");
  EXPECT_TRUE(server.AwaitLog("auth-identities has changed and is in use"));
  EXPECT_THAT(Attend(before), FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
}

TEST(IdentityReloadTest, AUserWhoIsTakenOutOfTheFileIsRefused) {
  IdentityServer server;
  const Caller before = server.AtSocket();
  ASSERT_TRUE(Attend(before).ok());
  server.Write("identities", "[[certificate]]\nuri = 'spiffe://x'\ntenant = 'x'\n");
  EXPECT_TRUE(server.AwaitLog("auth-identities has changed and is in use"));
  EXPECT_THAT(Attend(before), FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
  EXPECT_THAT(Attend(server.AtSocket()),
              FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_MISSING"));
}

TEST(IdentityDrainTest, UsersConnectionsAreDrainedLikeOthers) {
  IdentityServer server;
  const Caller user = server.AtSocket();
  v1::SessionHandle handle;
  ASSERT_TRUE(Create(user, &handle).ok());
  const auto context = user.Context();
  const auto stream = v1::SessionService::NewStub(user.channel)->StepStream(context.get());
  v1::StepStreamRequest request;
  *request.mutable_request()->add_steps() = MakeStep(MakePrompt(3), handle, 0, 3);
  ASSERT_TRUE(stream->Write(request));
  v1::StepStreamResponse response;
  ASSERT_TRUE(stream->Read(&response));
  server.process().Signal(SIGTERM);
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_THAT(stream->Finish(), FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  EXPECT_THAT(server.process().WaitForExit(), Optional(0));
}

TEST(OpenModeTest, AnAddressBeyondThisHostNeedsCredentialsOrASwitch) {
  for (const char* address : {"0.0.0.0:0", "[::]:0"}) {
    ServerProcess process({absl::StrCat("--listen=", address)});
    EXPECT_THAT(process.WaitForExit(), Optional(1));
    EXPECT_THAT(process.Log(), HasSubstr("trust-tenant-names-from-network"));
  }
  ServerProcess process({"--listen=0.0.0.0:0", "--trust-tenant-names-from-network=true"});
  ExpectServes(process.client());
}

// The table's last row: nobody has credentials, so who names a tenant is it.
TEST(OpenModeTest, WhoNamesATenantIsIt) {
  ServerProcess process;
  process.client();
  const auto channel =
      grpc::CreateChannel(process.addresses()[0], grpc::InsecureChannelCredentials());
  const Caller acme = {.channel = channel, .tenant = "acme"};
  v1::SessionHandle handle;
  ASSERT_TRUE(Create(acme, &handle).ok());
  ASSERT_TRUE(CreateLayer(acme, "mine").ok());
  EXPECT_THAT(Get({.channel = channel}, handle), FailsWith(grpc::NOT_FOUND, ""));
  const Caller somebody = {.channel = channel, .token = "any", .tenant = "acme"};
  EXPECT_TRUE(Step(somebody, handle).ok());
  EXPECT_THAT(IdsOf(somebody), ::testing::Contains(handle.session_id()));
  EXPECT_TRUE(ForwardRows(somebody, "mine").ok());
  EXPECT_TRUE(DeleteLayer(somebody, "mine").ok());
  EXPECT_TRUE(Delete(somebody, handle).ok());
  EXPECT_THAT(Get(acme, handle), FailsWith(grpc::NOT_FOUND, ""));
  // But nobody is an administrator.
  EXPECT_THAT(Info(somebody, nullptr, "rival"),
              FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
}

TEST(OpenModeTest, WrongFilesAtTheStartAreTold) {
  ServerProcess process({"--auth-tokens=/nowhere/tokens"});
  EXPECT_THAT(process.WaitForExit(), Optional(1));
  EXPECT_THAT(process.Log(), HasSubstr("auth-tokens is '/nowhere/tokens': cannot be read"));
  ServerProcess jwt({"--auth-jwt-issuer=me"});
  EXPECT_THAT(jwt.WaitForExit(), Optional(2));
  EXPECT_THAT(jwt.Log(), HasSubstr("auth-jwt-keys is empty"));
}

}  // namespace
}  // namespace attention::testing
