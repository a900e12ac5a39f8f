// The metadata by which servers know a client: token, tenant and what the program adds, on every
// call.
#include <gmock/gmock.h>

#include <atomic>

#include "absl/synchronization/mutex.h"
#include "attention/client/errors.h"
#include "tests/unit/client/fake_server.h"
#include "tests/unit/client/scratch_folder.h"

namespace attention::client {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Keeps the values of one key, a call each.
class Seen {
 public:
  explicit Seen(std::string key) : key_(std::move(key)) {}

  grpc::Status Note(const grpc::ServerContext& context) {
    absl::MutexLock lock(&mutex_);
    const auto found = context.client_metadata().find(key_);
    const bool has_it = found != context.client_metadata().end();
    values_.push_back(has_it ? MetadataValue(context, key_) : "(none)");
    return grpc::Status::OK;
  }
  std::vector<std::string> Take() {
    absl::MutexLock lock(&mutex_);
    return std::exchange(values_, {});
  }

 private:
  const std::string key_;
  absl::Mutex mutex_;
  std::vector<std::string> values_;
};

// A server that keeps the values of one key of all calls' metadata.
class NotingServer {
 public:
  explicit NotingServer(const std::string& key) : seen(key) {
    server.on_attend = [this](auto* context, auto&, auto*) { return Answer(*context); };
    server.on_get_server_info = [this](auto* context, auto&, auto*) { return Answer(*context); };
    server.on_attend_stream = [this](auto* context, auto* stream) {
      v1::AttendStreamRequest request;
      stream->Read(&request);
      v1::AttendStreamResponse response;
      response.set_request_id(request.request_id());
      response.set_is_last(true);
      response.mutable_response();
      stream->Write(response);
      return Answer(*context);
    };
    server.on_step_stream = [this](auto* context, auto* stream) {
      v1::StepStreamRequest request;
      while (stream->Read(&request)) continue;
      return Answer(*context);
    };
    server.on_create_layer = [this](auto* context, auto* stream, auto* response) {
      v1::CreateLayerRequest request;
      while (stream->Read(&request)) continue;
      response->mutable_layer()->mutable_config()->set_dtype(v1::DTYPE_FLOAT32);
      return Answer(*context);
    };
  }

  std::shared_ptr<Client> Connect(ClientOptions options) const {
    options.retry_policy.initial_backoff = absl::Milliseconds(1);
    options.shared_memory.use = SharedMemoryOptions::Use::kOff;
    return server.Connect(options);
  }

  // One call of each kind.
  static void CallAll(Client& client) {
    EXPECT_TRUE(client.Attend({}).ok());
    EXPECT_TRUE(client.GetServerInfoFuture().get().ok());
    EXPECT_TRUE(client.AttendWithWeights({}, [](WeightsBlock) {}).ok());
    const auto stream = client.OpenStepStream();
    ASSERT_TRUE(stream.ok()) << stream.status();
    EXPECT_TRUE((*stream)->Finish().ok());
    EXPECT_TRUE(client.CreateLayer({}).ok());
  }
  static constexpr int kNumKinds = 5;

  Seen seen;
  std::atomic<int> num_refusals = 0;  // calls that are still to be refused
  FakeServer server;

 private:
  grpc::Status Answer(const grpc::ServerContext& context) {
    seen.Note(context);
    if (num_refusals > 0 && num_refusals-- > 0) return {grpc::StatusCode::UNAVAILABLE, "busy"};
    return grpc::Status::OK;
  }
};

TEST(GrpcIdentityTest, AFixedTokenTravelsWithEveryKindOfCall) {
  NotingServer server("authorization");
  NotingServer::CallAll(*server.Connect({.token = {.value = "secret"}}));
  EXPECT_EQ(server.seen.Take(), std::vector<std::string>(NotingServer::kNumKinds, "Bearer secret"));
}

TEST(GrpcIdentityTest, ATokensFileIsReadAgainWhenItIsReplaced) {
  const ScratchFolder folder;
  NotingServer server("authorization");
  const auto client = server.Connect({.token = {.file = folder.Write("token", "one\n")}});
  ASSERT_TRUE(client->Attend({}).ok());
  // As old as can be, so that no moment of it may be half written.
  folder.Write("next", "two\n");
  std::filesystem::last_write_time(folder.PathOf("next"), {});
  std::filesystem::rename(folder.PathOf("next"), folder.PathOf("token"));
  NotingServer::CallAll(*client);
  std::vector<std::string> expected(NotingServer::kNumKinds + 1, "Bearer two");
  expected[0] = "Bearer one";
  EXPECT_EQ(server.seen.Take(), expected);
}

TEST(GrpcIdentityTest, EachAttemptAsksForTheTokenAnew) {
  NotingServer server("authorization");
  std::atomic<int> count = 0;
  const auto client =
      server.Connect({.token = {.callback = [&count] { return absl::StrCat("t", ++count); }}});
  server.num_refusals = 1;
  ASSERT_TRUE(client->Attend({}).ok());
  EXPECT_THAT(server.seen.Take(), ElementsAre("Bearer t1", "Bearer t2"));
  server.num_refusals = 1;
  ASSERT_TRUE(client->AttendFuture({}).get().ok());
  EXPECT_THAT(server.seen.Take(), ElementsAre("Bearer t3", "Bearer t4"));
  server.num_refusals = 1;
  ASSERT_TRUE(client->CreateLayer({}).ok());
  EXPECT_THAT(server.seen.Take(), ElementsAre("Bearer t5", "Bearer t6"));
}

TEST(GrpcIdentityTest, WithoutATokenNoCallIsMade) {
  NotingServer server("authorization");
  const auto client = server.Connect(
      {.token = {.callback = [] { return absl::PermissionDeniedError("not today"); }}});
  const auto expect_denied = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("not today"));
  };
  expect_denied(client->Attend({}).status());
  expect_denied(client->AttendFuture({}).get().status());
  expect_denied(client->AttendWithWeights({}, [](WeightsBlock) {}).status());
  expect_denied(client->OpenStepStream().status());
  expect_denied(client->CreateLayer({}).status());
  expect_denied(client->WaitUntilReady(absl::Seconds(60)));
  EXPECT_THAT(server.seen.Take(), IsEmpty());
}

TEST(GrpcIdentityTest, ATokenThatIsAwayForAMomentIsWaitedForAsServersAre) {
  NotingServer server("authorization");
  std::atomic<int> count = 0;
  const auto client =
      server.Connect({.token = {.callback = [&count]() -> absl::StatusOr<std::string> {
                        if (++count < 3) return absl::UnavailableError("the issuer is away");
                        return "there";
                      }}});
  ASSERT_TRUE(client->Attend({}).ok());
  EXPECT_THAT(server.seen.Take(), ElementsAre("Bearer there"));
}

TEST(GrpcIdentityTest, TheTenantIsTheServersToSayUnlessItIsSet) {
  NotingServer server("attention-tenant");
  NotingServer::CallAll(*server.Connect({.token = {.value = "secret"}}));
  EXPECT_EQ(server.seen.Take(), std::vector<std::string>(NotingServer::kNumKinds, "(none)"));
  NotingServer::CallAll(*server.Connect({.tenant = "acme"}));
  EXPECT_EQ(server.seen.Take(), std::vector<std::string>(NotingServer::kNumKinds, "acme"));
}

TEST(GrpcIdentityTest, FurtherMetadataTravelsWithEveryKindOfCall) {
  NotingServer server("x-route"), binary("x-route-bin");
  server.num_refusals = 1;
  NotingServer::CallAll(*server.Connect({.metadata = {{"x-route", "a b"}, {"x-more", ""}}}));
  EXPECT_EQ(server.seen.Take(), std::vector<std::string>(NotingServer::kNumKinds + 1, "a b"));
  const std::string bytes("\0\xff", 2);
  NotingServer::CallAll(*binary.Connect({.metadata = {{"x-route-bin", bytes}}}));
  EXPECT_EQ(binary.seen.Take(), std::vector<std::string>(NotingServer::kNumKinds, bytes));
}

// A server that refuses everybody.
class RefusalTest : public testing::Test {
 protected:
  void Refuse(grpc::StatusCode code, const std::string& reason) {
    const auto refuse = [this, code, reason](auto*, auto&, auto*) {
      ++num_calls_;
      return ServerError(code, "refused", reason);
    };
    server_.on_attend = refuse;
    server_.on_get_server_info = refuse;
  }

  std::atomic<int> num_calls_ = 0;
  FakeServer server_;
};

TEST_F(RefusalTest, IsNotTriedAgain) {
  const auto client = server_.Connect({.token = {.value = "secret"}});
  for (const auto reason : {kCredentialsMissing, kCredentialsInvalid, kCredentialsExpired}) {
    Refuse(grpc::StatusCode::UNAUTHENTICATED, std::string(reason));
    const absl::Status status = client->Attend({}).status();
    EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
    EXPECT_EQ(ErrorReason(status), std::string(reason));
  }
  for (const auto reason : {kTenantMismatch, kRoleRequired}) {
    Refuse(grpc::StatusCode::PERMISSION_DENIED, std::string(reason));
    EXPECT_EQ(ErrorReason(client->Attend({}).status()), std::string(reason));
  }
  EXPECT_EQ(num_calls_, 5);
}

TEST_F(RefusalTest, ReadinessTellsItWithTheTarget) {
  ClientOptions options;
  options.token.value = "secret";
  const auto client = server_.Connect(options);
  Refuse(grpc::StatusCode::UNAUTHENTICATED, "CREDENTIALS_EXPIRED");
  absl::Status status = client->WaitUntilReady(absl::Seconds(60));
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  EXPECT_EQ(ErrorReason(status), std::string(kCredentialsExpired));
  EXPECT_THAT(status.ToString(), AllOf(HasSubstr(server_.address()), Not(HasSubstr("secret"))));
  Refuse(grpc::StatusCode::PERMISSION_DENIED, "TENANT_MISMATCH");
  status = client->WaitUntilReady(absl::Seconds(60));
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  Refuse(grpc::StatusCode::UNAVAILABLE, "DRAINING");
  EXPECT_TRUE(client->WaitUntilReady(absl::Seconds(60)).ok()) << "another matter than credentials";
}

}  // namespace
}  // namespace attention::client
