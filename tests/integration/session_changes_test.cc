// Forks, truncations and reorders of sessions through the wire.
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr int kInvalid = grpc::INVALID_ARGUMENT;
constexpr int kFailedPrecondition = grpc::FAILED_PRECONDITION;

v1::ForkSessionRequest ForkOf(const v1::SessionHandle& handle, int num_copies = 1) {
  v1::ForkSessionRequest request;
  *request.mutable_handle() = handle;
  request.set_num_copies(num_copies);
  return request;
}

grpc::Status Fork(ServerClient& server, const v1::ForkSessionRequest& request,
                  v1::ForkSessionResponse* response, const std::string& tenant = "",
                  absl::Duration timeout = kCallTimeout) {
  return server.sessions().ForkSession(NewContext(tenant, timeout).get(), request, response);
}

std::vector<v1::Session> MustFork(ServerClient& server, const v1::ForkSessionRequest& request) {
  v1::ForkSessionResponse response;
  const grpc::Status status = Fork(server, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.sessions_size(), status.ok() ? std::max(1, request.num_copies()) : 0);
  return {response.sessions().begin(), response.sessions().end()};
}

grpc::Status Truncate(ServerClient& server, const v1::SessionHandle& handle, std::int64_t length,
                      v1::Session* session = nullptr, const std::string& tenant = "",
                      absl::Duration timeout = kCallTimeout) {
  v1::TruncateSessionRequest request;
  *request.mutable_handle() = handle;
  request.set_length(length);
  v1::TruncateSessionResponse response;
  const grpc::Status status =
      server.sessions().TruncateSession(NewContext(tenant, timeout).get(), request, &response);
  if (session != nullptr) *session = response.session();
  return status;
}

v1::ReorderSessionsRequest ReorderOf(const std::vector<v1::SessionHandle>& handles,
                                     const std::vector<int>& sources) {
  v1::ReorderSessionsRequest request;
  for (const v1::SessionHandle& handle : handles) *request.add_handles() = handle;
  for (const int source : sources) request.add_sources(source);
  return request;
}

grpc::Status Reorder(ServerClient& server, const v1::ReorderSessionsRequest& request,
                     v1::ReorderSessionsResponse* response, const std::string& tenant = "") {
  return server.sessions().ReorderSessions(NewContext(tenant).get(), request, response);
}

std::int64_t FreeBytes(ServerClient& server) {
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(server.info().GetServerInfo(NewContext().get(), {}, &info).ok());
  return info.capacity().kv_free_bytes();
}

class SessionChangesTest : public ServiceFixture {
 protected:
  // A session of the first tokens of a prompt, in chunks.
  static v1::SessionHandle Filled(const v1::AttendRequest& prompt, std::int64_t length,
                                  const SessionSpec& spec = {}) {
    const v1::SessionHandle handle = MustCreate(shared_server(), spec).handle();
    MustStep(shared_server(), MakeAppend(prompt, handle, 0, length));
    return handle;
  }
};

// --- Forks ---

class ForkedTypesTest : public SessionChangesTest,
                        public ::testing::WithParamInterface<v1::DType> {};

// The answers of a copy have the bits of those of a session that was given the same rows alone.
TEST_P(ForkedTypesTest, ACopyAnswersAsTheSameRowsAlone) {
  const SessionSpec spec{.kv_dtype = GetParam()};
  const v1::AttendRequest prompt = MakePrompt(300);
  const v1::AttendResponse alone =
      Feed(shared_server(), prompt, MustCreate(shared_server(), spec).handle(), 300);
  const v1::SessionHandle source = Filled(prompt, 230, spec);
  for (const std::int64_t length : {230, 192, 101, 1, 0}) {
    v1::ForkSessionRequest fork = ForkOf(source, 2);
    fork.set_length(length);
    for (const v1::Session& copy : MustFork(shared_server(), fork)) {
      EXPECT_EQ(copy.committed_length(), length);
      const v1::AttendResponse rest =
          AsResponse(MustStep(shared_server(), MakeStep(prompt, copy.handle(), length, 300)));
      EXPECT_TRUE(SameBits(rest.output(), Rows(alone.output(), length, 300))) << length;
    }
  }
  const v1::AttendResponse own =
      AsResponse(MustStep(shared_server(), MakeStep(prompt, source, 230, 300)));
  EXPECT_TRUE(SameBits(own.output(), Rows(alone.output(), 230, 300)));
}

INSTANTIATE_TEST_SUITE_P(Types, ForkedTypesTest,
                         ::testing::Values(v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16,
                                           v1::DTYPE_INT8, v1::DTYPE_FLOAT8_E4M3));

TEST_F(SessionChangesTest, CopiesTakeNoMemoryAndSayWhatTheyRead) {
  const v1::SessionHandle source = Filled(MakePrompt(500), 500);
  const std::int64_t bytes = MustGet(shared_server(), source).kv_bytes();
  const double used = shared_server().Metric("attention_kv_used_bytes");
  const std::vector<v1::Session> copies = MustFork(shared_server(), ForkOf(source, 100));
  EXPECT_EQ(shared_server().Metric("attention_kv_used_bytes"), used);
  for (const v1::Session& copy : copies) EXPECT_EQ(copy.kv_bytes(), bytes);
  EXPECT_NE(copies[0].handle().session_id(), copies[1].handle().session_id());
}

TEST_F(SessionChangesTest, CopiesOutliveTheirSource) {
  const v1::AttendRequest prompt = MakePrompt(50);
  const v1::SessionHandle source = Filled(prompt, 40);
  const v1::SessionHandle copy = MustFork(shared_server(), ForkOf(source))[0].handle();
  ASSERT_TRUE(Delete(shared_server(), source).ok());
  const v1::SessionHandle second = MustFork(shared_server(), ForkOf(copy))[0].handle();
  ASSERT_TRUE(Delete(shared_server(), copy).ok());
  MustStep(shared_server(), MakeStep(prompt, second, 40, 50));
}

TEST_F(SessionChangesTest, NamedCopiesAreMadeOnce) {
  const v1::SessionHandle source = Filled(MakePrompt(20), 20);
  v1::ForkSessionRequest fork = ForkOf(source, 2);
  fork.add_names("fork of twenty, one");
  fork.add_names("fork of twenty, two");
  fork.mutable_ttl()->set_seconds(77);
  const std::vector<v1::Session> first = MustFork(shared_server(), fork);
  const std::vector<v1::Session> again = MustFork(shared_server(), fork);
  for (int i : {0, 1}) {
    EXPECT_EQ(first[i].name(), fork.names(i));
    EXPECT_EQ(first[i].ttl().seconds(), 77);
    EXPECT_EQ(again[i].handle().session_id(), first[i].handle().session_id());
  }
}

struct BadFork {
  const char* name;
  std::function<void(v1::ForkSessionRequest&)> spoil;
  int code;
  const char* message;
};
class BadForkTest : public SessionChangesTest, public ::testing::WithParamInterface<BadFork> {};

TEST_P(BadForkTest, IsRefusedByName) {
  const v1::SessionHandle source = Filled(MakePrompt(20), 20);
  v1::ForkSessionRequest fork = ForkOf(source, 2);
  GetParam().spoil(fork);
  v1::ForkSessionResponse none;
  EXPECT_THAT(Fork(shared_server(), fork, &none), FailsWith(GetParam().code, GetParam().message));
  EXPECT_EQ(none.sessions_size(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadForkTest,
    ::testing::Values(
        BadFork{"LengthTooLarge", [](auto& f) { f.set_length(21); }, kFailedPrecondition,
                "length is 21, expected at most the committed length 20"},
        BadFork{"LengthNegative", [](auto& f) { f.set_length(-1); }, kInvalid,
                "length is -1, expected 0 to"},
        BadFork{"TooManyCopies", [](auto& f) { f.set_num_copies(1025); }, kInvalid,
                "num_copies is 1025, expected 1 to 1024"},
        BadFork{"CopiesNegative", [](auto& f) { f.set_num_copies(-1); }, kInvalid,
                "num_copies is -1"},
        BadFork{"TooFewNames", [](auto& f) { f.add_names("one"); }, kInvalid,
                "names has 1 entries, expected none or 2"},
        BadFork{"EmptyName",
                [](auto& f) {
                  f.add_names("one");
                  f.add_names("");
                },
                kInvalid, "names[1] is empty"},
        BadFork{"SameNames",
                [](auto& f) {
                  f.add_names("one");
                  f.add_names("one");
                },
                kInvalid, "names[1] is there twice"},
        BadFork{"LongName",
                [](auto& f) {
                  f.add_names("one");
                  f.add_names(std::string(129, 'x'));
                },
                kInvalid, "name has 129 bytes"},
        BadFork{"TtlZero", [](auto& f) { f.mutable_ttl(); }, kInvalid, "ttl is 0s"},
        BadFork{"TtlTooLong", [](auto& f) { f.mutable_ttl()->set_seconds(1 << 30); }, kInvalid,
                "ttl is "},
        BadFork{"NoHandle", [](auto& f) { f.clear_handle(); }, kInvalid,
                "handle.session_id is empty"},
        BadFork{"UnknownSession", [](auto& f) { f.mutable_handle()->set_session_id("nobody"); },
                grpc::NOT_FOUND, "handle.session_id 'nobody'"},
        BadFork{"AnotherServer", [](auto& f) { f.mutable_handle()->set_server_name("other"); },
                kFailedPrecondition, "handle.server_name"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(SessionChangesTest, AnotherTenantsSessionIsNotFoundByAnyOfThem) {
  const v1::SessionHandle handle = Filled(MakePrompt(20), 20);
  v1::ForkSessionResponse forked;
  v1::ReorderSessionsResponse reordered;
  const auto not_found = FailsBecause(grpc::NOT_FOUND, "SESSION_NOT_FOUND");
  EXPECT_THAT(Fork(shared_server(), ForkOf(handle), &forked, "stranger"), not_found);
  EXPECT_THAT(Truncate(shared_server(), handle, 0, nullptr, "stranger"), not_found);
  EXPECT_THAT(Reorder(shared_server(), ReorderOf({handle}, {0}), &reordered, "stranger"),
              not_found);
  EXPECT_EQ(MustGet(shared_server(), handle).committed_length(), 20);
}

TEST_F(SessionChangesTest, ALimitOfSessionsRefusesAllCopiesTogether) {
  TestServer server([](server::ServerConfig& config) { config.max_sessions_per_tenant = 4; });
  const v1::AttendRequest prompt = MakePrompt(200);
  const v1::SessionHandle source = MustCreate(server).handle();
  MustStep(server, MakeAppend(prompt, source, 0, 200));
  const std::int64_t free = FreeBytes(server);
  v1::ForkSessionResponse response;
  EXPECT_THAT(Fork(server, ForkOf(source, 4), &response),
              FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"));
  EXPECT_EQ(FreeBytes(server), free);
  EXPECT_EQ(MustFork(server, ForkOf(source, 3)).size(), 3u);
  ASSERT_TRUE(Delete(server, source).ok());
  EXPECT_EQ(FreeBytes(server), free) << "the copies have its pages";
}

// --- Truncations ---

TEST_F(SessionChangesTest, DraftsAreTakenBackAndOtherTokensFollow) {
  const v1::AttendRequest prompt = MakePrompt(300), drafts = MakePrompt(300, v1::DTYPE_FLOAT32, 2);
  const v1::AttendResponse alone =
      Feed(shared_server(), prompt, MustCreate(shared_server()).handle(), 300);
  const v1::SessionHandle handle = Filled(prompt, 250);
  MustStep(shared_server(), MakeStep(drafts, handle, 250, 270));
  EXPECT_THAT(RunStep(shared_server(), MakeStep(prompt, handle, 250, 260)).error(),
              FailsBecause(kFailedPrecondition, "POSITION_MISMATCH"));
  v1::Session session;
  ASSERT_TRUE(Truncate(shared_server(), handle, 250, &session).ok());
  EXPECT_EQ(session.layer_lengths(0), 250);
  ASSERT_TRUE(Truncate(shared_server(), handle, 250).ok()) << "once more";
  const v1::AttendResponse rest =
      AsResponse(MustStep(shared_server(), MakeStep(prompt, handle, 250, 300)));
  EXPECT_TRUE(SameBits(rest.output(), Rows(alone.output(), 250, 300)));
}

TEST_F(SessionChangesTest, LayersThatAreAheadAreTakenBackToo) {
  const v1::AttendRequest prompt = MakePrompt(30);
  const v1::SessionHandle handle = MustCreate(shared_server(), {.num_layers = 2}).handle();
  MustStep(shared_server(), MakeAppend(prompt, handle, 0, 30, 0));
  MustStep(shared_server(), MakeAppend(prompt, handle, 0, 20, 1));
  const grpc::Status too_long = Truncate(shared_server(), handle, 21);
  EXPECT_THAT(too_long, FailsBecause(kFailedPrecondition, "POSITION_MISMATCH"));
  EXPECT_EQ(DetailsOf(too_long).metadata["actual_position"], "20");
  v1::Session session;
  ASSERT_TRUE(Truncate(shared_server(), handle, 20, &session).ok());
  EXPECT_EQ(session.layer_lengths(0), 20);
  EXPECT_EQ(session.layer_lengths(1), 20);
  v1::TruncateSessionRequest none;
  *none.mutable_handle() = handle;
  v1::TruncateSessionResponse response;
  EXPECT_THAT(shared_server().sessions().TruncateSession(NewContext().get(), none, &response),
              FailsWith(kInvalid, "length is missing"));
}

// --- Reorders ---

TEST_F(SessionChangesTest, BeamsGoOnFromTheOnesThatWereChosen) {
  const std::vector<v1::AttendRequest> prompts = {MakePrompt(120, v1::DTYPE_FLOAT32, 1),
                                                  MakePrompt(120, v1::DTYPE_FLOAT32, 2),
                                                  MakePrompt(120, v1::DTYPE_FLOAT32, 3)};
  const v1::SessionHandle source = MustCreate(shared_server()).handle();
  std::vector<v1::SessionHandle> beams;
  std::vector<v1::AttendResponse> alone;
  for (const v1::Session& copy : MustFork(shared_server(), ForkOf(source, 3))) {
    const v1::AttendRequest& prompt = prompts[beams.size()];
    beams.push_back(copy.handle());
    MustStep(shared_server(), MakeAppend(prompt, beams.back(), 0, 100));
    alone.push_back(Feed(shared_server(), prompt, MustCreate(shared_server()).handle(), 120));
  }
  v1::ReorderSessionsRequest reorder = ReorderOf(beams, {2, 2, 0});
  reorder.set_reorder_id(5);
  for (int repetition = 0; repetition < 2; ++repetition) {
    v1::ReorderSessionsResponse response;
    const grpc::Status status = Reorder(shared_server(), reorder, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_EQ(response.sessions_size(), 3);
    EXPECT_EQ(response.sessions(1).committed_length(), 100);
  }
  const std::vector<int> now = {2, 2, 0};
  for (std::size_t i = 0; i < 3; ++i) {
    const v1::AttendResponse rest =
        AsResponse(MustStep(shared_server(), MakeStep(prompts[now[i]], beams[i], 100, 120)));
    EXPECT_TRUE(SameBits(rest.output(), Rows(alone[now[i]].output(), 100, 120))) << i;
  }
}

TEST_F(SessionChangesTest, ABadReorderIsRefusedByNameAndChangesNothing) {
  const v1::AttendRequest prompt = MakePrompt(20);
  const v1::SessionHandle one = Filled(prompt, 20);
  const v1::SessionHandle two = MustFork(shared_server(), ForkOf(one))[0].handle();
  ASSERT_TRUE(Truncate(shared_server(), two, 5).ok());
  const v1::SessionHandle wide = MustCreate(shared_server(), {.num_kv_heads = 4}).handle();
  v1::SessionHandle gone = two;
  gone.set_session_id("nobody");
  const auto expect = [&](const v1::ReorderSessionsRequest& request, const auto& matcher) {
    v1::ReorderSessionsResponse response;
    EXPECT_THAT(Reorder(shared_server(), request, &response), matcher);
  };
  expect(ReorderOf({}, {}), FailsWith(kInvalid, "handles has 0 entries"));
  expect(ReorderOf({one, two}, {0}), FailsWith(kInvalid, "sources has 1 entries, expected 2"));
  expect(ReorderOf({one, two}, {0, 2}), FailsWith(kInvalid, "sources[1] is 2, expected 0 to 1"));
  expect(ReorderOf({one, two}, {-1, 0}), FailsWith(kInvalid, "sources[0] is -1"));
  expect(ReorderOf({one, one}, {0, 0}), FailsWith(kInvalid, "handles[1] is there twice"));
  expect(ReorderOf({one, wide}, {0, 0}), FailsWith(kInvalid, "handles[1] has another geometry"));
  expect(ReorderOf({one, gone}, {1, 0}), FailsWith(grpc::NOT_FOUND, "handles[1]: handle"));
  EXPECT_EQ(MustGet(shared_server(), one).committed_length(), 20);
  EXPECT_EQ(MustGet(shared_server(), two).committed_length(), 5);
}

// --- All at once ---

// A client that does anything with the sessions of its tenant, which others do too.
class Rioter {
 public:
  Rioter(ServerClient& server, std::string tenant, std::vector<v1::SessionHandle> handles,
         std::uint32_t seed)
      : server_(server), tenant_(std::move(tenant)), handles_(std::move(handles)), random_(seed) {}

  void Run(int num_calls) {
    for (int i = 0; i < num_calls; ++i) {
      // Some clients are gone before their answer comes.
      const absl::Duration timeout =
          Any(0, 7) == 0 ? absl::Microseconds(Any(50, 1500)) : kCallTimeout;
      Check(Call(timeout));
    }
  }

 private:
  int Any(int begin, int end) { return std::uniform_int_distribution<int>(begin, end)(random_); }
  const v1::SessionHandle& Handle() {
    return handles_[static_cast<std::size_t>(Any(0, static_cast<int>(handles_.size()) - 1))];
  }

  grpc::Status Call(absl::Duration timeout) {
    switch (Any(0, 7)) {
      case 0:
      case 1: {
        v1::ForkSessionRequest request = ForkOf(Handle(), Any(1, 3));
        if (Any(0, 1) == 0) request.set_length(Any(0, 60));
        v1::ForkSessionResponse response;
        const grpc::Status status = Fork(server_, request, &response, tenant_, timeout);
        for (const v1::Session& copy : response.sessions()) handles_.push_back(copy.handle());
        return status;
      }
      case 2:
        return Truncate(server_, Handle(), Any(0, 60), nullptr, tenant_, timeout);
      case 3: {
        v1::ReorderSessionsResponse response;
        return Reorder(server_, ReorderOf({Handle(), Handle(), Handle()}, {1, 2, 1}), &response,
                       tenant_);
      }
      case 4:
        return Delete(server_, Handle(), tenant_);
      default:
        return Append(timeout);
    }
  }

  grpc::Status Append(absl::Duration timeout) {
    v1::GetSessionRequest get;
    *get.mutable_handle() = Handle();
    v1::GetSessionResponse found;
    grpc::Status status = server_.sessions().GetSession(NewContext(tenant_).get(), get, &found);
    if (!status.ok()) return status;
    const std::int64_t begin = found.session().layer_lengths(0);
    if (begin >= 90) return grpc::Status::OK;
    v1::StepRequest request;
    *request.add_steps() = MakeStep(prompt_, get.handle(), begin, begin + Any(1, 10));
    v1::StepResponse response;
    return server_.sessions().Step(NewContext(tenant_, timeout).get(), request, &response);
  }

  static void Check(const grpc::Status& status) {
    const auto code = status.error_code();
    EXPECT_TRUE(status.ok() || code == grpc::NOT_FOUND || code == grpc::FAILED_PRECONDITION ||
                code == grpc::INVALID_ARGUMENT || code == grpc::DEADLINE_EXCEEDED ||
                code == grpc::RESOURCE_EXHAUSTED)
        << code << ": " << status.error_message();
  }

  ServerClient& server_;
  const std::string tenant_;
  std::vector<v1::SessionHandle> handles_;
  std::mt19937 random_;
  const v1::AttendRequest prompt_ = MakePrompt(100);
};

TEST_F(SessionChangesTest, RacesOfAllCallsLeaveNoPageBehind) {
  TestServer server([](server::ServerConfig& config) { config.workers = 2; });
  const std::int64_t free = FreeBytes(server);
  std::vector<std::thread> threads;
  for (const std::string tenant : {"one", "two"}) {
    std::vector<v1::SessionHandle> handles;
    for (int i = 0; i < 4; ++i) handles.push_back(MustCreate(server, {}, tenant).handle());
    for (std::uint32_t i = 0; i < 3; ++i) {
      threads.emplace_back([&server, tenant, handles, i] {
        Rioter(server, tenant, handles, i + (tenant == "one" ? 10 : 20)).Run(200);
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  ExpectServes(server);
  // Copies whose answer did not arrive are found by listing.
  for (const std::string tenant : {"one", "two"}) {
    v1::ListSessionsRequest list;
    list.set_page_size(1000);
    v1::ListSessionsResponse page;
    do {
      ASSERT_TRUE(server.sessions().ListSessions(NewContext(tenant).get(), list, &page).ok());
      for (const v1::Session& session : page.sessions()) {
        EXPECT_TRUE(Delete(server, session.handle(), tenant).ok());
      }
    } while (page.sessions_size() > 0);
  }
  EXPECT_TRUE(WaitUntil([&] { return FreeBytes(server) == free; })) << FreeBytes(server);
}

}  // namespace
}  // namespace attention::testing
