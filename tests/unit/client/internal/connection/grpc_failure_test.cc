// How calls fail and how they are tried again, against a server in this process. Back-off runs on a
// fake clock; nothing here sleeps.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <set>
#include <stop_token>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "attention/client/errors.h"
#include "client/internal/connection/grpc_connection.h"
#include "tests/unit/client/fake_server.h"
#include "tests/unit/client/fake_timer.h"

namespace attention::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Optional;

constexpr absl::Duration kSoon = absl::Milliseconds(30);

class GrpcFailureTest : public testing::Test {
 protected:
  ~GrpcFailureTest() override { timer_->Close(); }

  // A client whose retries wait on timer_.
  Client FakeTimeClient() {
    ClientOptions options;
    options.targets = {server_.address()};
    return Client(std::make_shared<internal::GrpcConnection>(options, timer_, [] { return 0.5; }));
  }

  // Makes Attend fail `count` times with `error`, then succeed.
  void FailTimes(int count, grpc::Status error) {
    server_.on_attend = [this, count, error](auto* context, auto&, auto*) {
      absl::MutexLock lock(&mutex_);
      ids_.insert(MetadataValue(*context, "x-request-id"));
      return ++num_calls_ <= count ? error : grpc::Status::OK;
    };
  }

  // Makes Attend wait for release_.
  void Hold() {
    server_.on_attend = [this](auto*, auto&, auto*) {
      entered_.Notify();
      release_.WaitForNotification();
      return grpc::Status::OK;
    };
  }

  // Real time now, because gRPC compares deadlines with it.
  std::shared_ptr<internal::FakeTimer> timer_ = std::make_shared<internal::FakeTimer>(absl::Now());
  absl::Mutex mutex_;
  int num_calls_ = 0;
  std::set<std::string> ids_;
  absl::Notification entered_, release_;
  FakeServer server_;  // last, as its handlers use what is above
};

TEST_F(GrpcFailureTest, CodeMessageReasonAndMetadataArrive) {
  server_.on_get_session = [](auto*, auto&, auto*) {
    return ServerError(grpc::StatusCode::FAILED_PRECONDITION, "elsewhere", "SESSION_MOVED",
                       "server_name", "w1");
  };
  const absl::Status status = server_.Connect()->GetSession({}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_EQ(status.message(), "elsewhere");
  EXPECT_THAT(ErrorReason(status), Optional(std::string(kSessionMoved)));
  EXPECT_THAT(ErrorMetadata(status, kServerName), Optional(std::string("w1")));
}

TEST_F(GrpcFailureTest, UnavailableIsRetriedOnSchedule) {
  FailTimes(3, {grpc::StatusCode::UNAVAILABLE, "down"});
  Client client = FakeTimeClient();
  Future<AttendResult> future = client.AttendFuture({});
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(50));
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(100));
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(200));
  EXPECT_TRUE(future.get().ok());
  EXPECT_EQ(num_calls_, 4);
  EXPECT_EQ(ids_.size(), 1u) << "attempts share the request's id";
}

TEST_F(GrpcFailureTest, EveryAttemptToCreateASessionAsksForTheSameOne) {
  std::vector<std::string> names;
  server_.on_create_session = [&](auto*, const v1::CreateSessionRequest& request, auto* response) {
    names.push_back(request.name());
    if (names.size() == 1) return grpc::Status(grpc::UNAVAILABLE, "made, but who is to know");
    response->mutable_session()->mutable_geometry()->set_kv_dtype(v1::DTYPE_FLOAT32);
    response->mutable_session()->set_name(request.name());
    return grpc::Status::OK;
  };
  Client client = FakeTimeClient();
  Future<Session> future = client.CreateSessionFuture({});
  timer_->RunNext();
  const auto session = future.get();
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_EQ(names.size(), 2u);
  EXPECT_EQ(names[0].size(), 32u);
  EXPECT_EQ(names[0], names[1]);
  EXPECT_EQ(session->info().name, names[0]);
  ASSERT_TRUE(client.CreateSession({}).ok());
  EXPECT_NE(names[2], names[0]) << "another call makes another session";
  ASSERT_TRUE(client.CreateSession({.name = "mine"}).ok());
  EXPECT_EQ(names[3], "mine");
}

TEST_F(GrpcFailureTest, AttemptsAreUsedUp) {
  FailTimes(9, ServerError(grpc::StatusCode::UNAVAILABLE, "bye", "DRAINING"));
  Client client = FakeTimeClient();
  Future<AttendResult> future =
      client.AttendFuture({}, {.retry_policy = RetryPolicy{.max_attempts = 2}});
  timer_->RunNext();
  const absl::Status status = future.get().status();
  EXPECT_EQ(status.message(), "bye (2 attempts)");
  EXPECT_THAT(ErrorReason(status), Optional(std::string(kDraining)));
  EXPECT_EQ(num_calls_, 2);
}

TEST_F(GrpcFailureTest, ServersDelayIsHonoured) {
  FailTimes(1, ServerError(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", "", "",
                           absl::Milliseconds(2500)));
  Client client = FakeTimeClient();
  Future<AttendResult> future = client.AttendFuture({}, {.retry_policy = RetryPolicy{.jitter = 0}});
  EXPECT_EQ(timer_->RunNext(), absl::Milliseconds(2500));
  EXPECT_TRUE(future.get().ok());
}

TEST_F(GrpcFailureTest, ExhaustionWithoutADelayIsNotRetried) {
  FailTimes(1, ServerError(grpc::StatusCode::RESOURCE_EXHAUSTED, "no pages", "KV_EXHAUSTED"));
  EXPECT_TRUE(absl::IsResourceExhausted(FakeTimeClient().Attend({}).status()));
  EXPECT_EQ(num_calls_, 1);
}

TEST_F(GrpcFailureTest, InvalidArgumentIsNotRetried) {
  FailTimes(1, {grpc::StatusCode::INVALID_ARGUMENT, "q: rank 5, expected 3 or 4"});
  const absl::Status status = FakeTimeClient().Attend({}).status();
  EXPECT_EQ(status, absl::InvalidArgumentError("q: rank 5, expected 3 or 4"));
  EXPECT_EQ(num_calls_, 1);
}

TEST_F(GrpcFailureTest, RetriesEndAtTheDeadline) {
  FailTimes(9, ServerError(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", "", "",
                           absl::Minutes(2)));
  const absl::Status status = FakeTimeClient().Attend({}, {.timeout = absl::Minutes(1)}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("no time for another"));
  EXPECT_THAT(RetryDelay(status), Optional(absl::Minutes(2)));
}

TEST_F(GrpcFailureTest, RetriesSendTheTensorsOfTheFirstAttempt) {
  std::vector<std::string> received;
  server_.on_attend = [&](auto*, auto& request, auto*) {
    absl::MutexLock lock(&mutex_);
    received.push_back(request.q().data());
    return ++num_calls_ == 1 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "down")
                             : grpc::Status::OK;
  };
  Client client = FakeTimeClient();
  std::vector<float> values(1000, 1.0f);
  Future<AttendResult> future = client.AttendFuture({.q = TensorView(values, {1000})});
  std::fill(values.begin(), values.end(), 2.0f);
  timer_->RunNext();
  ASSERT_TRUE(future.get().ok());
  const std::vector<float> first(1000, 1.0f);
  const std::string expected(reinterpret_cast<const char*>(first.data()), 4000);
  EXPECT_THAT(received, testing::ElementsAre(expected, expected));
}

TEST_F(GrpcFailureTest, ACallerWhoWaitsIsAnsweredOnItsOwnThread) {
  FailTimes(0, grpc::Status::OK);
  const auto client = server_.Connect();
  std::thread::id answered_on;
  client->AttendAsync({}, {.may_block = true},
                      [&](auto) { answered_on = std::this_thread::get_id(); });
  EXPECT_EQ(answered_on, std::this_thread::get_id());
}

TEST_F(GrpcFailureTest, ACallerWhoWaitsMayBeCancelled) {
  Hold();
  const auto client = server_.Connect();
  std::stop_source source;
  std::thread canceller([&] {
    entered_.WaitForNotification();
    source.request_stop();
  });
  EXPECT_TRUE(absl::IsCancelled(client->Attend({}, {.cancellation = source.get_token()}).status()));
  canceller.join();
  release_.Notify();
}

TEST_F(GrpcFailureTest, TimeoutIsDeadlineExceeded) {
  Hold();
  const auto client = server_.Connect();
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->Attend({}, {.timeout = kSoon}).status()));
  release_.Notify();
}

TEST_F(GrpcFailureTest, DeadlineWinsOverTimeoutAndReachesTheServer) {
  std::atomic<bool> has_deadline = false;
  server_.on_attend = [&](auto* context, auto&, auto*) {
    const auto left = context->deadline() - std::chrono::system_clock::now();
    has_deadline = left > std::chrono::minutes(30) && left < std::chrono::hours(2);
    return grpc::Status::OK;
  };
  const CallOptions options = {.timeout = absl::ZeroDuration(),
                               .deadline = absl::Now() + absl::Hours(1)};
  EXPECT_TRUE(server_.Connect()->Attend({}, options).ok());
  EXPECT_TRUE(has_deadline);
}

TEST_F(GrpcFailureTest, ClientsDefaultTimeoutApplies) {
  Hold();
  ClientOptions options;
  options.default_timeout = kSoon;
  EXPECT_TRUE(absl::IsDeadlineExceeded(server_.Connect(options)->Attend({}).status()));
  release_.Notify();
}

TEST_F(GrpcFailureTest, CancelInFlight) {
  Hold();
  const auto client = server_.Connect();
  std::stop_source source;
  Future<AttendResult> future = client->AttendFuture({}, {.cancellation = source.get_token()});
  entered_.WaitForNotification();
  source.request_stop();
  EXPECT_TRUE(absl::IsCancelled(future.get().status()));
  release_.Notify();
}

TEST_F(GrpcFailureTest, CancelledBeforeTheCall) {
  std::stop_source source;
  source.request_stop();
  const auto client = server_.Connect();
  EXPECT_TRUE(absl::IsCancelled(client->Attend({}, {.cancellation = source.get_token()}).status()));
}

TEST_F(GrpcFailureTest, CancelBetweenAttempts) {
  FailTimes(9, {grpc::StatusCode::UNAVAILABLE, "down"});
  Client client = FakeTimeClient();
  std::stop_source source;
  Future<AttendResult> future = client.AttendFuture({}, {.cancellation = source.get_token()});
  timer_->RunNext();  // so the call is certain to be in its second attempt or the wait after it
  source.request_stop();
  EXPECT_TRUE(absl::IsCancelled(future.get().status()));
}

TEST_F(GrpcFailureTest, CancelAfterTheCallDoesNothing) {
  FailTimes(0, grpc::Status::OK);
  std::stop_source source;
  EXPECT_TRUE(server_.Connect()->Attend({}, {.cancellation = source.get_token()}).ok());
  source.request_stop();
}

TEST_F(GrpcFailureTest, CallsInFlightSurviveTheClient) {
  Hold();
  auto client = server_.Connect();
  Future<AttendResult> future = client->AttendFuture({});
  entered_.WaitForNotification();
  client.reset();
  release_.Notify();
  EXPECT_TRUE(future.get().ok());
}

TEST_F(GrpcFailureTest, WaitsBetweenAttemptsSurviveTheClient) {
  FailTimes(1, {grpc::StatusCode::UNAVAILABLE, "down"});
  Future<AttendResult> future = FakeTimeClient().AttendFuture({});
  timer_->RunNext();
  EXPECT_TRUE(future.get().ok());
}

TEST_F(GrpcFailureTest, TheLastReferenceMayDieInACallback) {
  Hold();
  std::shared_ptr<Client> client = server_.Connect();
  absl::Notification done;
  client->AttendAsync({}, {}, [&client, &done](auto) {
    client.reset();
    done.Notify();
  });
  entered_.WaitForNotification();
  release_.Notify();
  done.WaitForNotification();
}

TEST_F(GrpcFailureTest, AServerThatStopsFailsWhatIsInFlight) {
  Hold();
  const auto client = server_.Connect();
  Future<AttendResult> future = client->AttendFuture({}, {.retry_policy = RetryPolicy::None()});
  entered_.WaitForNotification();
  std::thread stopping([this] { server_.Stop(); });
  EXPECT_FALSE(future.get().ok());
  release_.Notify();
  stopping.join();
}

// A server whose answer to Attend is whatever bytes a test wants.
class RawServer final
    : public v1::AttentionService::WithRawCallbackMethod_Attend<v1::AttentionService::Service> {
 public:
  explicit RawServer(const std::string& answer) : answer_(answer) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }

  absl::StatusOr<AttendResult> Attend() const {
    ClientOptions options;
    options.targets = {absl::StrCat("127.0.0.1:", port_)};
    return (*Client::Connect(options))->Attend({});
  }

 private:
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context, const grpc::ByteBuffer*,
                                   grpc::ByteBuffer* response) override {
    const grpc::Slice slice(answer_);
    *response = grpc::ByteBuffer(&slice, 1);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  const std::string answer_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(GrpcFailureTest, AnAnswerThatIsNoMessageIsInternal) {
  const RawServer server("\x0a\x05\x1a\x09q");
  const absl::Status status = server.Attend().status();
  EXPECT_TRUE(absl::IsInternal(status));
  EXPECT_THAT(
      std::string(status.message()),
      HasSubstr("the server's answer is no attention.v1.AttendResponse: output is malformed"));
}

TEST_F(GrpcFailureTest, AnEmptyAnswerIsAMessageWithoutTensors) {
  const RawServer server("");
  const auto result = server.Attend();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->output.is_present());
}

TEST_F(GrpcFailureTest, NoServerIsUnavailableAndNeverReady) {
  const auto client = server_.Connect();
  server_.Stop();
  const CallOptions once = {.retry_policy = RetryPolicy::None()};
  EXPECT_TRUE(absl::IsUnavailable(client->Attend({}, once).status()));
  const absl::Status status = client->WaitUntilReady(kSoon);
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr(server_.address()));
}

TEST_F(GrpcFailureTest, RealTimeRetriesToo) {
  FailTimes(2, {grpc::StatusCode::UNAVAILABLE, "down"});
  ClientOptions options;
  options.retry_policy.initial_backoff = absl::Milliseconds(1);
  EXPECT_TRUE(server_.Connect(options)->Attend({}).ok());
  EXPECT_EQ(num_calls_, 3);
}

}  // namespace
}  // namespace attention::client
