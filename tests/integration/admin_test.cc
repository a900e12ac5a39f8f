// The role admin: what of other tenants it sees and ends, and that nobody else does.
#include <csignal>

#include "tests/support/tenant_calls.h"

namespace attention::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Optional;

class AdminTest : public ::testing::Test {
 protected:
  // Callers of the role use: another tenant's and, naming itself, the tenant's own.
  std::vector<Caller> Users() { return {server_.Plain(server_.rival.token), server_.AtSocket()}; }

  grpc::Status SetSessions(const std::string& token, std::int64_t sessions) {
    v1::SetTenantLimitsRequest request;
    request.set_tenant("acme");
    request.mutable_limits()->set_sessions(sessions);
    v1::SetTenantLimitsResponse response;
    const Caller caller = server_.Plain(token);
    return v1::ServerService::NewStub(caller.channel)
        ->SetTenantLimits(caller.Context().get(), request, &response);
  }

  grpc::Status Drain(const Caller& caller) {
    v1::DrainResponse response;
    return v1::ServerService::NewStub(caller.channel)->Drain(caller.Context().get(), {}, &response);
  }

  IdentityServer server_;
};

TEST_F(AdminTest, OnlyAnAdminReachesWhatOthersHave) {
  const Acme acme(server_);
  std::vector<std::string> ids;
  for (const Caller& user : Users()) {
    for (const grpc::Status& status :
         {List(user, &ids, "acme"), Get(user, acme.handle, "acme"),
          Delete(user, acme.handle, "acme"), ListLayers(user, &ids, "acme"),
          GetLayer(user, acme.layer_id, "acme"), DeleteLayer(user, acme.layer_id, "acme"),
          Info(user, nullptr, "acme")}) {
      EXPECT_THAT(status, FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
    }
  }
  EXPECT_THAT(ids, ::testing::IsEmpty());
  acme.ExpectUntouched();
}

TEST_F(AdminTest, ATenantMayNameItself) {
  const Acme acme(server_);
  const Caller self = server_.Plain(server_.acme.token);
  EXPECT_TRUE(Get(self, acme.handle, "acme").ok());
  EXPECT_TRUE(GetLayer(self, acme.layer_id, "acme").ok());
  EXPECT_TRUE(Info(self, nullptr, "acme").ok());
}

TEST_F(AdminTest, AnAdminSeesAndEndsWhatATenantHas) {
  const Acme acme(server_);
  const Caller admin = server_.Plain(server_.ops.token);
  std::vector<std::string> sessions, layers;
  EXPECT_TRUE(List(admin, &sessions, "acme").ok());
  EXPECT_THAT(sessions, ElementsAre(acme.handle.session_id()));
  EXPECT_TRUE(ListLayers(admin, &layers, "acme").ok());
  EXPECT_THAT(layers, ElementsAre(acme.layer_id));
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(Info(admin, &info, "acme").ok());
  EXPECT_EQ(info.tenant(), "acme");
  EXPECT_EQ(info.capacity().num_sessions(), 1);
  EXPECT_EQ(info.capacity().num_layers(), 1);
  // It has nothing itself, and it cannot compute with what is another's.
  sessions.clear();
  EXPECT_TRUE(List(admin, &sessions).ok());
  EXPECT_THAT(sessions, ::testing::IsEmpty());
  EXPECT_THAT(Step(admin, acme.handle), FailsWith(grpc::NOT_FOUND, ""));
  EXPECT_THAT(ForwardRows(admin, acme.layer_id), FailsWith(grpc::NOT_FOUND, ""));

  EXPECT_TRUE(Delete(admin, acme.handle, "acme").ok());
  EXPECT_TRUE(DeleteLayer(admin, acme.layer_id, "acme").ok());
  const Caller owner = server_.Plain(server_.acme.token);
  EXPECT_THAT(Step(owner, acme.handle), FailsWith(grpc::NOT_FOUND, ""));
  EXPECT_THAT(GetLayer(owner, acme.layer_id), FailsWith(grpc::NOT_FOUND, ""));
}

TEST_F(AdminTest, ATenantThatCannotBeIsRefused) {
  EXPECT_THAT(Info(server_.Plain(server_.ops.token), nullptr, std::string(129, 'a')),
              FailsWith(grpc::INVALID_ARGUMENT, "tenant is "));
}

TEST_F(AdminTest, OnlyAnAdminSetsLimits) {
  EXPECT_THAT(SetSessions(server_.acme.token, 500),
              FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
  EXPECT_THAT(SetSessions(server_.rival.token, 500),
              FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
  EXPECT_THAT(SetSessions("guess", 500),
              FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
  EXPECT_TRUE(SetSessions(server_.ops.token, 500).ok());
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(Info(server_.Plain(server_.ops.token), &info, "acme").ok());
  EXPECT_EQ(info.limits().max_sessions_per_tenant(), 500);
}

TEST_F(AdminTest, OnlyAnAdminDrainsTheServer) {
  for (const Caller& user : Users()) {
    EXPECT_THAT(Drain(user), FailsBecause(grpc::PERMISSION_DENIED, "ROLE_REQUIRED"));
  }
  EXPECT_THAT(Drain(server_.Plain("guess")),
              FailsBecause(grpc::UNAUTHENTICATED, "CREDENTIALS_INVALID"));
  EXPECT_TRUE(Attend(server_.Plain(server_.acme.token)).ok()) << "it goes on";

  const Caller user = server_.AtSocket();
  v1::SessionHandle handle;
  ASSERT_TRUE(Create(user, &handle).ok());
  EXPECT_TRUE(Drain(server_.Plain(server_.ops.token)).ok());
  EXPECT_THAT(server_.process().WaitForExit(), Optional(0));
  EXPECT_THAT(server_.process().Log(), HasSubstr("tenant 'ops' asked for a drain"));
}

}  // namespace
}  // namespace attention::testing
