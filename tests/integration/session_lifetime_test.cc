// A session's owner, how long it lives, and what becomes of its cache.
#include <set>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

// As plain numbers, to be compared with the codes of steps too.
constexpr int kNotFound = grpc::NOT_FOUND;
constexpr int kResourceExhausted = grpc::RESOURCE_EXHAUSTED;

class SessionLifetimeTest : public ServiceFixture {
 protected:
  static grpc::Status Get(TestServer& server, const v1::SessionHandle& handle,
                          const std::string& tenant = "") {
    v1::GetSessionRequest request;
    *request.mutable_handle() = handle;
    v1::GetSessionResponse response;
    return server.sessions().GetSession(NewContext(tenant).get(), request, &response);
  }

  static v1::ListSessionsResponse List(TestServer& server, const std::string& tenant, int page_size,
                                       const std::string& page_token = "") {
    v1::ListSessionsRequest request;
    request.set_page_size(page_size);
    request.set_page_token(page_token);
    v1::ListSessionsResponse response;
    const grpc::Status status =
        server.sessions().ListSessions(NewContext(tenant).get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
};

TEST_F(SessionLifetimeTest, ASessionIsWhatWasAskedFor) {
  const v1::Session session = MustCreate(shared_server(), {.num_layers = 3,
                                                           .num_kv_heads = 5,
                                                           .head_dim_qk = 17,
                                                           .head_dim_v = 96,
                                                           .kv_dtype = v1::DTYPE_BFLOAT16,
                                                           .ttl = absl::Milliseconds(90'500)});
  const v1::Session seen = MustGet(shared_server(), session.handle());
  EXPECT_EQ(seen.handle().SerializeAsString(), session.handle().SerializeAsString());
  EXPECT_EQ(seen.geometry().num_layers(), 3);
  EXPECT_EQ(seen.geometry().num_kv_heads(), 5);
  EXPECT_EQ(seen.geometry().head_dim_qk(), 17);
  EXPECT_EQ(seen.geometry().head_dim_v(), 96);
  EXPECT_EQ(seen.geometry().kv_dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(seen.layer_lengths_size(), 3);
  EXPECT_EQ(seen.committed_length(), 0);
  EXPECT_EQ(seen.kv_bytes(), 0);
  EXPECT_EQ(seen.ttl().seconds(), 90);
  EXPECT_EQ(seen.ttl().nanos(), 500'000'000);
  EXPECT_GE(seen.expire_time().seconds() - seen.create_time().seconds(), 90);
  EXPECT_EQ(session.handle().session_id().size(), 32u);
}

TEST_F(SessionLifetimeTest, AListComesInPagesWithoutGapsOrRepeats) {
  std::set<std::string> created;
  for (int i = 0; i < 7; ++i) {
    created.insert(MustCreate(shared_server(), {}, "lister").handle().session_id());
  }
  std::set<std::string> listed;
  std::vector<int> page_sizes;
  std::string token;
  do {
    const v1::ListSessionsResponse page = List(shared_server(), "lister", 3, token);
    page_sizes.push_back(page.sessions_size());
    for (const v1::Session& session : page.sessions()) {
      EXPECT_TRUE(listed.insert(session.handle().session_id()).second);
    }
    token = page.next_page_token();
  } while (!token.empty());
  EXPECT_EQ(listed, created);
  EXPECT_EQ(page_sizes, (std::vector<int>{3, 3, 1}));
  EXPECT_EQ(List(shared_server(), "lister", 7).next_page_token(), "");
  EXPECT_EQ(List(shared_server(), "lister", 0).sessions_size(), 7);
}

TEST_F(SessionLifetimeTest, DeletingFreesTheCacheAndMayBeRepeated) {
  TestServer own;
  const v1::SessionHandle handle = MustCreate(own).handle();
  MustStep(own, MakeStep(MakePrompt(200), handle, 0, 200));
  EXPECT_GT(own.Metric("attention_kv_used_bytes"), 0);
  EXPECT_TRUE(Delete(own, handle).ok());
  EXPECT_EQ(own.Metric("attention_kv_used_bytes"), 0);
  EXPECT_EQ(own.Metric("attention_sessions"), 0);
  EXPECT_TRUE(Delete(own, handle).ok());
  EXPECT_THAT(Get(own, handle), FailsBecause(kNotFound, "SESSION_NOT_FOUND"));
  EXPECT_THAT(RunStep(own, MakeStep(MakePrompt(3), handle, 0, 3)).error(),
              FailsBecause(kNotFound, "SESSION_NOT_FOUND"));
  ExpectServes(own);
}

TEST_F(SessionLifetimeTest, AnotherTenantsSessionDoesNotExist) {
  const v1::AttendRequest prompt = MakePrompt(5);
  const v1::SessionHandle handle = MustCreate(shared_server(), {}, "owner").handle();
  EXPECT_THAT(Get(shared_server(), handle, "stranger"),
              FailsBecause(kNotFound, "SESSION_NOT_FOUND"));
  EXPECT_THAT(RunStep(shared_server(), MakeStep(prompt, handle, 0, 5), "stranger").error(),
              FailsBecause(kNotFound, "SESSION_NOT_FOUND"));
  EXPECT_EQ(List(shared_server(), "stranger", 10).sessions_size(), 0);
  EXPECT_TRUE(Delete(shared_server(), handle, "stranger").ok());
  EXPECT_FALSE(RunStep(shared_server(), MakeStep(prompt, handle, 0, 5), "owner").has_error());
}

TEST_F(SessionLifetimeTest, AHandleTellsAnotherWorkerARestartAndAnUnknownId) {
  const v1::SessionHandle good = MustCreate(shared_server()).handle();
  v1::SessionHandle handle = good;
  handle.set_server_name("server-9");
  const grpc::Status moved = Get(shared_server(), handle);
  EXPECT_THAT(moved, FailsBecause(grpc::FAILED_PRECONDITION, "SESSION_MOVED"));
  EXPECT_EQ(DetailsOf(moved).metadata.at("server_name"), "server-9");
  EXPECT_EQ(DetailsOf(moved).domain, "attention.v1");
  handle = good;
  handle.set_server_epoch(good.server_epoch() - 1);
  EXPECT_THAT(Get(shared_server(), handle), FailsBecause(kNotFound, "SESSION_LOST"));
  handle = good;
  handle.set_session_id(std::string(32, '0'));
  EXPECT_THAT(Get(shared_server(), handle), FailsBecause(kNotFound, "SESSION_NOT_FOUND"));
  handle.clear_session_id();
  EXPECT_THAT(Get(shared_server(), handle),
              FailsWith(grpc::INVALID_ARGUMENT, "handle.session_id is empty"));
  EXPECT_TRUE(Get(shared_server(), good).ok());
}

TEST_F(SessionLifetimeTest, MetadataOfAnErrorHoldsTheHandlesWorkerOnOneLine) {
  v1::SessionHandle handle = MustCreate(shared_server()).handle();
  handle.set_server_name("a\nreason=DRAINING\nretry_delay_ns=5");
  const ErrorDetails details = DetailsOf(Get(shared_server(), handle));
  EXPECT_EQ(details.reason, "SESSION_MOVED");
  EXPECT_FALSE(details.retry_delay.has_value());
  EXPECT_EQ(details.metadata.at("server_name"), "a\\nreason=DRAINING\\nretry_delay_ns=5");
}

TEST_F(SessionLifetimeTest, ARestartedWorkerSaysThatItsSessionsAreLost) {
  v1::SessionHandle handle;
  {
    TestServer before;
    handle = MustCreate(before).handle();
  }
  TestServer after;
  EXPECT_THAT(RunStep(after, MakeStep(MakePrompt(3), handle, 0, 3)).error(),
              FailsBecause(kNotFound, "SESSION_LOST"));
  ExpectServes(after);
}

TEST_F(SessionLifetimeTest, AnIdleSessionExpiresAndAUsedOneDoesNot) {
  TestServer own;
  const v1::AttendRequest prompt = MakePrompt(4);
  const v1::SessionHandle idle = MustCreate(own, {.ttl = absl::Milliseconds(150)}).handle();
  MustStep(own, MakeStep(prompt, idle, 0, 4));
  const v1::SessionHandle used = MustCreate(own, {.ttl = absl::Seconds(30)}).handle();
  // The reaper alone ends it: nothing here touches the idle session.
  EXPECT_TRUE(WaitUntil([&] { return own.Metric("attention_sessions") == 1; }));
  EXPECT_EQ(own.Metric("attention_sessions_expired_total"), 1);
  EXPECT_EQ(own.Metric("attention_kv_used_bytes"), 0);
  EXPECT_THAT(Get(own, idle), FailsBecause(kNotFound, "SESSION_EXPIRED"));
  EXPECT_THAT(RunStep(own, MakeStep(prompt, idle, 0, 4)).error(),
              FailsBecause(kNotFound, "SESSION_EXPIRED"));
  MustStep(own, MakeStep(prompt, used, 0, 4));
}

TEST_F(SessionLifetimeTest, EachUseRenewsTheLease) {
  TestServer own;
  const v1::AttendRequest prompt = MakePrompt(400);
  const v1::SessionHandle handle = MustCreate(own, {.ttl = absl::Milliseconds(2500)}).handle();
  const absl::Time end = absl::Now() + absl::Milliseconds(3500);
  std::int64_t position = 0;
  while (absl::Now() < end && position < 400) {
    MustStep(own, MakeStep(prompt, handle, position, position + 1));
    ++position;
    WaitUntil([] { return false; }, absl::Milliseconds(10));
  }
  EXPECT_EQ(MustGet(own, handle).committed_length(), position);
}

TEST_F(SessionLifetimeTest, AnExhaustedPoolServesAgainWhenASessionIsDeleted) {
  TestServer own(
      [](server::ServerConfig& config) { config.kv_capacity_bytes = std::int64_t{8} << 20; });
  // 512 bytes a token: some 4096 tokens are 2 MiB.
  const v1::AttendRequest prompt = MakePrompt(4096);
  std::vector<v1::SessionHandle> full;
  v1::SessionHandle refused;
  for (int i = 0; i < 64 && refused.session_id().empty(); ++i) {
    const v1::SessionHandle handle = MustCreate(own).handle();
    const v1::SessionStepResult result = RunStep(own, MakeAppend(prompt, handle, 0, 4096));
    if (!result.has_error()) {
      full.push_back(handle);
      continue;
    }
    refused = handle;
    // A tenth is left to other tenants.
    EXPECT_THAT(result.error(), FailsBecause(kResourceExhausted, "QUOTA_EXCEEDED"));
  }
  ASSERT_FALSE(refused.session_id().empty());
  ASSERT_FALSE(full.empty());
  EXPECT_EQ(MustGet(own, refused).layer_lengths(0), 0);
  EXPECT_EQ(MustGet(own, refused).kv_bytes(), 0);
  // The cached tokens can still be read, and stateless work goes on.
  MustStep(own, MakeAttend(prompt, full[0], 0, 2));
  ExpectServes(own);

  EXPECT_TRUE(Delete(own, full.back()).ok());
  EXPECT_EQ(MustStep(own, MakeAppend(prompt, refused, 0, 4096)).position(), 4096);
}

TEST_F(SessionLifetimeTest, ASessionThatCouldNotHoldItsTokensIsRefusedAtOnce) {
  v1::CreateSessionRequest request = MakeCreateRequest({});
  request.set_expected_tokens(std::int64_t{1} << 30);
  v1::CreateSessionResponse response;
  const grpc::Status status =
      shared_server().sessions().CreateSession(NewContext().get(), request, &response);
  EXPECT_THAT(status, FailsBecause(kResourceExhausted, "KV_EXHAUSTED"));
  EXPECT_THAT(status.error_message(), ::testing::HasSubstr("expected_tokens is 1073741824"));
  MustCreate(shared_server());
}

TEST_F(SessionLifetimeTest, TheDefaultTtlIsNeverOverTheLongest) {
  TestServer own([](server::ServerConfig& config) {
    config.session_ttl = absl::Minutes(15);
    config.max_session_ttl = absl::Minutes(3);  // all that an operator may have set
  });
  EXPECT_EQ(MustCreate(own).ttl().seconds(), 180);
}

TEST_F(SessionLifetimeTest, TheServerTellsItsBoundsAndWhatIsLeft) {
  TestServer own([](server::ServerConfig& config) {
    config.server_name = "server-7";
    config.max_sessions = 5;
    config.session_ttl = absl::Minutes(2);
    config.max_session_ttl = absl::Minutes(3);
  });
  const auto get_info = [&] {
    v1::GetServerInfoResponse info;
    const grpc::Status status = own.info().GetServerInfo(NewContext().get(), {}, &info);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return info;
  };
  const v1::SessionHandle handle = MustCreate(own).handle();
  const v1::GetServerInfoResponse before = get_info();
  EXPECT_EQ(before.server_name(), "server-7");
  EXPECT_EQ(before.server_name(), handle.server_name());
  EXPECT_EQ(before.server_epoch(), handle.server_epoch());
  EXPECT_FALSE(before.version().empty());
  EXPECT_EQ(before.limits().max_sessions(), 5);
  EXPECT_EQ(before.limits().max_session_ttl_seconds(), 180);
  EXPECT_EQ(before.limits().max_head_dim_qk(), 576);
  EXPECT_EQ(before.limits().max_head_dim_v(), 512);
  EXPECT_EQ(before.limits().kv_capacity_bytes(), 64 << 20);
  EXPECT_EQ(before.limits().max_response_bytes(), before.limits().max_message_bytes());
  EXPECT_EQ(before.capacity().num_sessions(), 1);
  v1::GetServerInfoResponse of_others;
  EXPECT_TRUE(own.info().GetServerInfo(NewContext("other").get(), {}, &of_others).ok());
  EXPECT_EQ(of_others.capacity().num_sessions(), 0) << "a tenant sees its own alone";
  EXPECT_EQ(before.capacity().kv_free_bytes(), 64 << 20);
  // The processor, and the GPU with the reason why it is not used.
  ASSERT_EQ(before.devices_size(), 2);
  EXPECT_TRUE(before.devices(0).is_used());
  EXPECT_FALSE(before.devices(1).is_used());
  EXPECT_EQ(before.devices(1).backend(), "cuda");
  EXPECT_NE(before.devices(1).unused_reason(), "");
  EXPECT_EQ(before.devices(0).backend(), "cpu");
  EXPECT_EQ(before.devices(0).num_threads(), 2);
  MustStep(own, MakeAppend(MakePrompt(100), handle, 0, 100));
  EXPECT_LT(get_info().capacity().kv_free_bytes(), 64 << 20);
  EXPECT_TRUE(Delete(own, handle).ok());
  EXPECT_EQ(get_info().capacity().kv_free_bytes(), 64 << 20);
}

}  // namespace
}  // namespace attention::testing
