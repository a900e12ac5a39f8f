// Callers with no, wrong and right credentials of each kind, and what each can do to another
// tenant: the cells of the table in docs/identity.md.
#include <csignal>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "attention/v1/layer_service.grpc.pb.h"
#include "tests/support/identity_server.h"
#include "tests/support/layer_driver.h"
#include "tests/support/session_driver.h"
#include "tests/support/shared_memory.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Optional;

constexpr std::size_t kRegionBytes = std::size_t{1} << 20;

grpc::Status Attend(const Caller& caller, v1::AttendRequest request = MakeAttendRequest({})) {
  v1::AttendResponse response;
  const grpc::Status status = v1::AttentionService::NewStub(caller.channel)
                                  ->Attend(caller.Context().get(), request, &response);
  if (status.ok() && !request.has_output_to()) {
    EXPECT_EQ(FindMismatch(request, response), "");
  }
  return status;
}

grpc::Status AttendOnAStream(const Caller& caller) {
  const auto context = caller.Context();
  const auto stream = v1::AttentionService::NewStub(caller.channel)->AttendStream(context.get());
  v1::AttendStreamRequest request;
  *request.mutable_request() = MakeAttendRequest({});
  stream->Write(request);
  stream->WritesDone();
  v1::AttendStreamResponse response;
  const bool is_answered = stream->Read(&response);
  grpc::Status status = stream->Finish();
  EXPECT_EQ(status.ok(), is_answered);
  return status;
}

grpc::Status Create(const Caller& caller, v1::SessionHandle* handle) {
  v1::CreateSessionResponse response;
  const grpc::Status status =
      v1::SessionService::NewStub(caller.channel)
          ->CreateSession(caller.Context().get(), MakeCreateRequest({}), &response);
  *handle = response.session().handle();
  return status;
}

grpc::Status Get(const Caller& caller, const v1::SessionHandle& handle) {
  v1::GetSessionRequest request;
  *request.mutable_handle() = handle;
  v1::GetSessionResponse response;
  return v1::SessionService::NewStub(caller.channel)
      ->GetSession(caller.Context().get(), request, &response);
}

grpc::Status Delete(const Caller& caller, const v1::SessionHandle& handle) {
  v1::DeleteSessionRequest request;
  *request.mutable_handle() = handle;
  v1::DeleteSessionResponse response;
  return v1::SessionService::NewStub(caller.channel)
      ->DeleteSession(caller.Context().get(), request, &response);
}

// A step that appends and attends; the call's status, or the step's.
grpc::Status Step(const Caller& caller, const v1::SessionHandle& handle) {
  v1::StepRequest request;
  *request.add_steps() = MakeStep(MakePrompt(3), handle, 0, 3);
  v1::StepResponse response;
  const grpc::Status status =
      v1::SessionService::NewStub(caller.channel)->Step(caller.Context().get(), request, &response);
  if (!status.ok() || !response.results(0).has_error()) return status;
  return {static_cast<grpc::StatusCode>(response.results(0).error().code()),
          response.results(0).error().message()};
}

grpc::Status StepOnAStream(const Caller& caller, const v1::SessionHandle& handle) {
  const auto context = caller.Context();
  const auto stream = v1::SessionService::NewStub(caller.channel)->StepStream(context.get());
  v1::StepStreamRequest request;
  *request.mutable_request()->add_steps() = MakeStep(MakePrompt(3), handle, 0, 3);
  stream->Write(request);
  stream->WritesDone();
  v1::StepStreamResponse response;
  const bool is_answered = stream->Read(&response);
  grpc::Status status = stream->Finish();
  if (!status.ok() || !is_answered || !response.response().results(0).has_error()) return status;
  return {static_cast<grpc::StatusCode>(response.response().results(0).error().code()),
          response.response().results(0).error().message()};
}

std::vector<std::string> List(const Caller& caller) {
  v1::ListSessionsResponse response;
  std::vector<std::string> ids;
  if (v1::SessionService::NewStub(caller.channel)
          ->ListSessions(caller.Context().get(), {}, &response)
          .ok()) {
    for (const auto& session : response.sessions()) ids.push_back(session.handle().session_id());
  }
  return ids;
}

const LayerCase& TheLayer() {
  static const auto* layer = new LayerCase(MakeLayer(SmallLayerConfig(), 1));
  return *layer;
}

grpc::Status CreateLayer(const Caller& caller, const std::string& layer_id) {
  const auto context = caller.Context();
  v1::CreateLayerResponse response;
  const auto writer =
      v1::LayerService::NewStub(caller.channel)->CreateLayer(context.get(), &response);
  for (const auto& message : UploadOf(TheLayer(), layer_id)) {
    if (!writer->Write(message)) break;
  }
  writer->WritesDone();
  return writer->Finish();
}

grpc::Status GetLayer(const Caller& caller, const std::string& layer_id) {
  v1::GetLayerRequest request;
  request.set_layer_id(layer_id);
  v1::GetLayerResponse response;
  return v1::LayerService::NewStub(caller.channel)
      ->GetLayer(caller.Context().get(), request, &response);
}

grpc::Status DeleteLayer(const Caller& caller, const std::string& layer_id) {
  v1::DeleteLayerRequest request;
  request.set_layer_id(layer_id);
  v1::DeleteLayerResponse response;
  return v1::LayerService::NewStub(caller.channel)
      ->DeleteLayer(caller.Context().get(), request, &response);
}

grpc::Status ConvertLayer(const Caller& caller, const std::string& layer_id) {
  v1::ConvertLayerRequest request;
  request.set_source_layer_id(layer_id);
  request.set_layer_id("stolen");
  request.set_num_kv_heads(1);
  v1::ConvertLayerResponse response;
  return v1::LayerService::NewStub(caller.channel)
      ->ConvertLayer(caller.Context().get(), request, &response);
}

grpc::Status Info(const Caller& caller) {
  v1::GetServerInfoResponse response;
  return v1::ServerService::NewStub(caller.channel)
      ->GetServerInfo(caller.Context().get(), {}, &response);
}

// Asks for the output in somebody's memory.
grpc::Status AttendInto(const Caller& caller, const std::string& region_id) {
  v1::AttendRequest request = MakeAttendRequest({});
  request.mutable_output_to()->set_region_id(region_id);
  return Attend(caller, request);
}

v1::SharedMemoryResponse CreateRegion(ChannelConnection& connection, const std::string& tenant,
                                      const std::string& token) {
  v1::SharedMemoryRequest request;
  request.mutable_create()->set_size_bytes(kRegionBytes);
  request.mutable_create()->set_tenant(tenant);
  request.mutable_create()->set_token(token);
  return connection.Call(request.SerializeAsString());
}

// The tenant acme, with one of each thing that a tenant has.
class Acme {
 public:
  explicit Acme(IdentityServer& server)
      : caller_(server.Plain(server.acme.token)), connection_(server.channel_path()) {
    EXPECT_TRUE(Create(caller_, &handle).ok());
    EXPECT_TRUE(Step(caller_, handle).ok());
    EXPECT_TRUE(CreateLayer(caller_, layer_id).ok());
    const auto response = CreateRegion(connection_, "", server.acme.token);
    EXPECT_TRUE(response.has_create()) << response.ShortDebugString();
    region_id = response.create().region_id();
    memory_ = std::make_unique<SharedMemory>(connection_.TakeFd(), kRegionBytes, region_id);
  }

  void ExpectUntouched() const {
    EXPECT_TRUE(Get(caller_, handle).ok());
    EXPECT_TRUE(GetLayer(caller_, layer_id).ok());
    EXPECT_TRUE(std::all_of(memory_->data(), memory_->data() + kRegionBytes,
                            [](char byte) { return byte == 0; }));
  }

  v1::SessionHandle handle;
  const std::string layer_id = "acme.0";
  std::string region_id;

 private:
  const Caller caller_;
  ChannelConnection connection_;
  std::unique_ptr<SharedMemory> memory_;
};

// Everything that is done to a tenant's things, or that costs the server something.
std::vector<std::pair<const char*, std::function<grpc::Status(const Caller&)>>> Deeds(
    const Acme& acme) {
  return {
      {"attend", [](const Caller& caller) { return Attend(caller); }},
      {"attend on a stream", AttendOnAStream},
      {"create a session",
       [](const Caller& caller) {
         v1::SessionHandle handle;
         return Create(caller, &handle);
       }},
      {"get", [&](const Caller& caller) { return Get(caller, acme.handle); }},
      {"step", [&](const Caller& caller) { return Step(caller, acme.handle); }},
      {"step on a stream",
       [&](const Caller& caller) { return StepOnAStream(caller, acme.handle); }},
      {"delete", [&](const Caller& caller) { return Delete(caller, acme.handle); }},
      {"create a layer", [](const Caller& caller) { return CreateLayer(caller, "mine"); }},
      {"get a layer", [&](const Caller& caller) { return GetLayer(caller, acme.layer_id); }},
      {"delete a layer", [&](const Caller& caller) { return DeleteLayer(caller, acme.layer_id); }},
      {"convert a layer",
       [&](const Caller& caller) { return ConvertLayer(caller, acme.layer_id); }},
      {"write into memory",
       [&](const Caller& caller) { return AttendInto(caller, acme.region_id); }},
      {"ask for the load", Info},
  };
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
    EXPECT_THAT(List(caller), Not(::testing::Contains(acme.handle.session_id())));
    EXPECT_THAT(GetLayer(caller, acme.layer_id), FailsWith(grpc::NOT_FOUND, ""));
    EXPECT_THAT(ConvertLayer(caller, acme.layer_id), FailsWith(grpc::NOT_FOUND, ""));
    DeleteLayer(caller, acme.layer_id);
    EXPECT_THAT(AttendInto(caller, acme.region_id), FailsWith(grpc::NOT_FOUND, ""));
    // And are good for the caller's own.
    EXPECT_TRUE(Attend(caller).ok());
    EXPECT_TRUE(AttendOnAStream(caller).ok());
    v1::SessionHandle handle;
    ASSERT_TRUE(Create(caller, &handle).ok());
    EXPECT_TRUE(Step(caller, handle).ok());
    EXPECT_TRUE(StepOnAStream(caller, handle).ok()) << "a replay";
    EXPECT_THAT(List(caller), ::testing::Contains(handle.session_id()));
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

// Limits are an operator's to set.
TEST_F(IdentityTest, OnlyAnAdminSetsLimitsAndSeesThoseOfOthers) {
  const auto set = [&](const std::string& token) {
    v1::SetTenantLimitsRequest request;
    request.set_tenant("acme");
    request.mutable_limits()->set_sessions(500);
    v1::SetTenantLimitsResponse response;
    const Caller caller = server().Plain(token);
    return v1::ServerService::NewStub(caller.channel)
        ->SetTenantLimits(caller.Context().get(), request, &response);
  };
  EXPECT_THAT(set(server().acme.token), FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
  EXPECT_THAT(set(server().rival.token), FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
  EXPECT_THAT(set("guess"), FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
  EXPECT_TRUE(set(server().ops.token).ok());
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
