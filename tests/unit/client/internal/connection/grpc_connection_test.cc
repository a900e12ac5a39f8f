// The SDK against a server in this process: every RPC in all three forms, and what travels beside
// the messages.
#include "client/internal/connection/grpc_connection.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "attention/client/errors.h"
#include "tests/unit/client/fake_server.h"

namespace attention::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<float> kValues = {1, 2, 3, 4};

// Starts the callback form and waits for its outcome.
template <typename Outcome, typename Start>
Outcome AsyncOutcome(Start start) {
  Outcome outcome;
  absl::Notification notification;
  start([&](Outcome result) {
    outcome = std::move(result);
    notification.Notify();
  });
  notification.WaitForNotification();
  return outcome;
}

void FillHandle(v1::SessionHandle* handle) {
  handle->set_server_name("w");
  handle->set_server_epoch(7);
  handle->set_session_id("s");
}

void FillSession(v1::Session* session) {
  FillHandle(session->mutable_handle());
  session->mutable_geometry()->set_num_layers(2);
  session->mutable_geometry()->set_kv_dtype(v1::DTYPE_FLOAT32);
}

// Answers with v as the output.
grpc::Status EchoValues(grpc::ServerContext*, const v1::AttendRequest& request,
                        v1::AttendResponse* response) {
  *response->mutable_output() = request.v();
  response->mutable_timing()->set_batch_size(1);
  return grpc::Status::OK;
}

class GrpcConnectionTest : public testing::Test {
 protected:
  FakeServer server_;
  std::shared_ptr<Client> client_ = server_.Connect();
  const AttendRequest request_ = {.v = TensorView(kValues, {1, 2, 2})};
  const SessionHandle handle_ = {"w", 7, "s"};
};

TEST_F(GrpcConnectionTest, WaitUntilReady) {
  EXPECT_TRUE(client_->WaitUntilReady(absl::Seconds(10)).ok());
}

TEST_F(GrpcConnectionTest, AttendInAllForms) {
  server_.on_attend = EchoValues;
  const auto plain = client_->Attend(request_);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_THAT(plain->output.floats(), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(plain->timing.batch_size, 1);
  EXPECT_TRUE(client_->AttendFuture(request_).get().ok());
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<AttendResult>>([&](auto done) {
                client_->AttendAsync(request_, {}, done);
              }).ok());
}

TEST_F(GrpcConnectionTest, TensorsNeedToLiveOnlyUntilTheFunctionReturns) {
  absl::Notification release;
  server_.on_attend = [&](auto* context, auto& request, auto* response) {
    release.WaitForNotification();
    return EchoValues(context, request, response);
  };
  auto values = std::make_unique<std::vector<float>>(kValues);
  Future<AttendResult> future = client_->AttendFuture({.v = TensorView(*values, {1, 2, 2})});
  std::fill(values->begin(), values->end(), -1.0f);
  values.reset();
  release.Notify();
  EXPECT_THAT(future.get()->output.floats(), ElementsAre(1, 2, 3, 4));
}

TEST_F(GrpcConnectionTest, SessionCallsInAllForms) {
  server_.on_create_session = [](auto*, auto&, auto* response) {
    FillSession(response->mutable_session());
    return grpc::Status::OK;
  };
  server_.on_get_session = [](auto*, auto& request, auto* response) {
    FillSession(response->mutable_session());
    *response->mutable_session()->mutable_handle() = request.handle();
    return grpc::Status::OK;
  };
  server_.on_list_sessions = [](auto*, auto& request, auto* response) {
    FillSession(response->add_sessions());
    response->set_next_page_token(request.page_token() + "+");
    return grpc::Status::OK;
  };
  server_.on_delete_session = [](auto*, auto& request, auto*) {
    return request.handle().session_id() == "s" ? grpc::Status::OK : grpc::Status::CANCELLED;
  };
  EXPECT_EQ(client_->CreateSession({})->handle(), handle_);
  EXPECT_EQ(client_->CreateSessionFuture({}).get()->handle(), handle_);
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<SessionInfo>>([&](auto done) {
                client_->GetSessionAsync(handle_, {}, done);
              }).ok());
  EXPECT_EQ(client_->GetSession(handle_)->handle, handle_);
  EXPECT_EQ(client_->GetSessionFuture(handle_).get()->handle, handle_);
  EXPECT_EQ(client_->ListSessions({.page_token = "a"})->next_page_token, "a+");
  EXPECT_EQ(client_->ListSessionsFuture().get()->sessions.size(), 1u);
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<ListSessionsResult>>([&](auto done) {
                client_->ListSessionsAsync({}, {}, done);
              }).ok());
  EXPECT_TRUE(client_->DeleteSession(handle_).ok());
  EXPECT_TRUE(client_->DeleteSessionFuture(handle_).get().ok());
  EXPECT_TRUE(AsyncOutcome<absl::Status>([&](auto done) {
                client_->DeleteSessionAsync(handle_, {}, done);
              }).ok());
}

TEST_F(GrpcConnectionTest, ChangesOfSessionsInAllForms) {
  server_.on_fork_session = [](auto*, auto& request, auto* response) {
    for (const std::string& name : request.names()) {
      FillSession(response->add_sessions());
      response->mutable_sessions()->rbegin()->set_name(name);
    }
    return grpc::Status::OK;
  };
  server_.on_truncate_session = [](auto*, auto& request, auto* response) {
    FillSession(response->mutable_session());
    response->mutable_session()->set_committed_length(request.length());
    return grpc::Status::OK;
  };
  server_.on_reorder_sessions = [](auto*, auto& request, auto* response) {
    for (const int source : request.sources()) {
      FillSession(response->add_sessions());
      response->mutable_sessions()->rbegin()->set_committed_length(source);
    }
    return request.reorder_id() != 0 ? grpc::Status::OK : grpc::Status::CANCELLED;
  };
  const ForkSessionRequest fork = {.handle = handle_, .num_copies = 3};
  const auto copies = client_->ForkSession(fork);
  ASSERT_TRUE(copies.ok()) << copies.status();
  ASSERT_EQ(copies->size(), 3u);
  EXPECT_NE((*copies)[0].info().name, (*copies)[1].info().name) << "names make retries safe";
  EXPECT_EQ(
      client_->ForkSessionFuture({.handle = handle_, .names = {"mine"}}).get()->at(0).info().name,
      "mine");
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<std::vector<Session>>>([&](auto done) {
                client_->ForkSessionAsync(fork, {}, done);
              }).ok());
  const TruncateSessionRequest truncate = {.handle = handle_, .length = 9};
  EXPECT_EQ(client_->TruncateSession(truncate)->committed_length, 9);
  EXPECT_EQ(client_->TruncateSessionFuture(truncate).get()->committed_length, 9);
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<SessionInfo>>([&](auto done) {
                client_->TruncateSessionAsync(truncate, {}, done);
              }).ok());
  const ReorderSessionsRequest reorder = {.handles = {handle_, handle_}, .sources = {1, 0}};
  EXPECT_EQ(client_->ReorderSessions(reorder)->at(0).committed_length, 1);
  EXPECT_EQ(client_->ReorderSessionsFuture(reorder).get()->size(), 2u);
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<std::vector<SessionInfo>>>([&](auto done) {
                client_->ReorderSessionsAsync(reorder, {}, done);
              }).ok());
}

TEST_F(GrpcConnectionTest, AttachingGivesTheHandleOfTheNewWriter) {
  server_.on_attach_session = [](auto*, auto& request, auto* response) {
    FillSession(response->mutable_session());
    response->mutable_session()->mutable_handle()->set_writer(request.handle().writer() + 1);
    return grpc::Status::OK;
  };
  SessionHandle old = handle_;
  old.writer = 6;
  const auto session = client_->AttachSession(old);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->handle().writer, 7u);
  EXPECT_EQ(session->handle().session_id, old.session_id);
}

TEST_F(GrpcConnectionTest, SessionsAreListedByNameLabelsAndState) {
  v1::ListSessionsRequest seen;
  server_.on_list_sessions = [&](auto*, auto& request, auto* response) {
    seen = request;
    FillSession(response->add_sessions());
    (*response->mutable_sessions(0)->mutable_labels())["user"] = "ann";
    response->mutable_sessions(0)->set_state(v1::SESSION_STATE_SPILLED);
    return grpc::Status::OK;
  };
  const auto result = client_->ListSessions(
      {.name = "mine", .labels = {{"user", "ann"}}, .state = SessionState::kBusy});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(seen.name(), "mine");
  EXPECT_EQ(seen.labels().at("user"), "ann");
  EXPECT_EQ(seen.state(), v1::SESSION_STATE_BUSY);
  EXPECT_EQ(result->sessions[0].labels.at("user"), "ann");
  EXPECT_EQ(result->sessions[0].state, SessionState::kSpilled);
  ASSERT_TRUE(client_->ListSessions().ok());
  EXPECT_EQ(seen.state(), v1::SESSION_STATE_UNSPECIFIED);
}

TEST_F(GrpcConnectionTest, CreateSessionAsyncGivesAWorkingSession) {
  server_.on_create_session = [](auto*, auto&, auto* response) {
    FillSession(response->mutable_session());
    return grpc::Status::OK;
  };
  server_.on_step = [](auto*, auto& request, auto* response) {
    response->add_results()->set_position(request.steps(0).expected_position() + 1);
    return grpc::Status::OK;
  };
  absl::Notification notification;
  std::optional<Session> session;
  client_->CreateSessionAsync({}, {}, [&](absl::StatusOr<Session> created) {
    if (created.ok()) session.emplace(*std::move(created));
    notification.Notify();
  });
  notification.WaitForNotification();
  ASSERT_TRUE(session.has_value());
  const TensorView row(std::span<const float>(kValues).first(2), {1, 1, 2});
  EXPECT_EQ(session->Step(1, row, row, row)->position, 1);
  EXPECT_EQ(session->position(1), 1);
}

TEST_F(GrpcConnectionTest, StepInAllForms) {
  server_.on_step = [](auto*, auto& request, auto* response) {
    for (const auto& step : request.steps()) response->add_results()->set_position(step.layer());
    return grpc::Status::OK;
  };
  const StepRequest request = {.steps = {{.handle = handle_, .layer = 1}, {.layer = 2}}};
  const auto plain = client_->Step(request);
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->results[1].position, 2);
  EXPECT_EQ(client_->StepFuture(request).get()->results.size(), 2u);
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<StepResult>>([&](auto done) {
                client_->StepAsync(request, {}, done);
              }).ok());
}

TEST_F(GrpcConnectionTest, ServerInfoAndExplainInAllForms) {
  server_.on_get_server_info = [](auto*, auto&, auto* response) {
    response->set_version("1.2");
    return grpc::Status::OK;
  };
  server_.on_explain = [](auto*, auto& request, auto* response) {
    response->set_flops(static_cast<double>(request.q_len()));
    return grpc::Status::OK;
  };
  EXPECT_EQ(client_->GetServerInfo()->version, "1.2");
  EXPECT_EQ(client_->GetServerInfoFuture().get()->version, "1.2");
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<ServerInfo>>([&](auto done) {
                client_->GetServerInfoAsync({}, done);
              }).ok());
  EXPECT_EQ(client_->Explain({.q_len = 3})->flops, 3);
  EXPECT_EQ(client_->ExplainFuture({.q_len = 3}).get()->flops, 3);
  EXPECT_TRUE(AsyncOutcome<absl::StatusOr<ExplainResult>>([&](auto done) {
                client_->ExplainAsync({}, {}, done);
              }).ok());
}

TEST_F(GrpcConnectionTest, MetadataReachesTheServer) {
  absl::Mutex mutex;
  std::set<std::string> tenants, ids;
  server_.on_attend = [&](auto* context, auto& request, auto* response) {
    absl::MutexLock lock(&mutex);
    tenants.insert(MetadataValue(*context, "attention-tenant"));
    ids.insert(MetadataValue(*context, "x-request-id"));
    return EchoValues(context, request, response);
  };
  ClientOptions options;
  options.tenant = "acme";
  const auto client = server_.Connect(options);
  ASSERT_TRUE(client->Attend(request_, {.request_id = "mine"}).ok());
  ASSERT_TRUE(client->Attend(request_).ok());
  ASSERT_TRUE(client->Attend(request_).ok());
  EXPECT_THAT(tenants, ElementsAre("acme"));
  EXPECT_EQ(ids.size(), 3u) << "generated ids differ";
  EXPECT_EQ(ids.count("mine"), 1u);
  EXPECT_TRUE(std::all_of(ids.begin(), ids.end(), [](auto& id) { return !id.empty(); }));
}

TEST_F(GrpcConnectionTest, BadOptionsAndUnreadableTensorsAreNotSent) {
  server_.on_attend = EchoValues;
  EXPECT_TRUE(absl::IsInvalidArgument(client_->Attend({}, {.request_id = "\n"}).status()));
  const AttendRequest bad = {.q = TensorView(nullptr, DType::kFloat32, {1})};
  EXPECT_THAT(std::string(client_->Attend(bad).status().message()), HasSubstr("q.data"));
}

TEST_F(GrpcConnectionTest, UnixSocket) {
  const std::string path = testing::TempDir() + "attention_client_" + std::to_string(getpid());
  FakeServer server("unix:" + path);
  server.on_attend = EchoValues;
  EXPECT_TRUE(server.Connect()->Attend(request_).ok());
  std::filesystem::remove(path);
}

TEST_F(GrpcConnectionTest, ThreadsShareAClientOverSeveralChannels) {
  absl::Mutex mutex;
  std::set<std::string> peers;
  server_.on_attend = [&](auto* context, auto& request, auto* response) {
    absl::MutexLock lock(&mutex);
    peers.insert(context->peer());
    return EchoValues(context, request, response);
  };
  ClientOptions options;
  options.num_channels = 3;
  const auto client = server_.Connect(options);
  std::atomic<int> num_good = 0;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      const std::vector<float> values(64, static_cast<float>(thread));
      for (int i = 0; i < 50; ++i) {
        const auto result = client->Attend({.v = TensorView(values, {1, 1, 64})});
        if (result.ok() && result->output.ToFloats() == values) ++num_good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_good, 8 * 50);
  EXPECT_EQ(peers.size(), 3u) << "one connection for each channel";
}

TEST_F(GrpcConnectionTest, LargeTensorsComeBackWhole) {
  server_.on_attend = EchoValues;
  std::vector<float> values(std::size_t{16} << 20);  // 64 MiB, past gRPC's own default of 4
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 8191);
  const auto result = client_->Attend({.v = TensorView(values, {1 << 14, 8, 128})});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(std::equal(values.begin(), values.end(), result->output.floats().begin(),
                         result->output.floats().end()));
}

TEST_F(GrpcConnectionTest, RequestsBeyondTheClientsLimitAreRefusedBeforeTheyAreSent) {
  server_.on_attend = EchoValues;
  ClientOptions options;
  options.max_message_bytes = 1000;
  const auto client = server_.Connect(options);
  const std::vector<float> values(300);
  const absl::Status status = client->Attend({.v = TensorView(values, {1, 1, 300})}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_message_bytes is 1000"));
}

}  // namespace
}  // namespace attention::client
