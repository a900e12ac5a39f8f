// The server as a process: how it starts, what it tells, how it ends.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "tests/support/raw_call.h"
#include "tests/support/server_process.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Optional;

// grpc.health.v1 without generated code: HealthCheckRequest{service} and
// HealthCheckResponse{status}.
constexpr char kCheck[] = "/grpc.health.v1.Health/Check";
constexpr char kWatch[] = "/grpc.health.v1.Health/Watch";
const std::string kServing = "\x08\x01";
const std::string kNotServing = "\x08\x02";

std::string HealthRequest(const std::string& service) {
  if (service.empty()) return "";
  return std::string("\x0a") + static_cast<char>(service.size()) + service;
}

const char* const kServices[] = {"attention.v1.AttentionService", "attention.v1.SessionService",
                                 "attention.v1.LayerService", "attention.v1.ServerService"};

TEST(LifecycleTest, ThePortFileTellsTheAddresses) {
  ServerProcess process;
  ExpectServes(process.client());
  EXPECT_EQ(process.addresses().size(), 1u);
  EXPECT_THAT(process.addresses()[0], HasSubstr("127.0.0.1:"));
  EXPECT_EQ(process.client().Get("/healthz").status, 200);
  EXPECT_FALSE(std::filesystem::exists(process.directory() + "/ports.json.tmp"));
}

TEST(LifecycleTest, EitherSignalEndsAnIdleServerWithZero) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ServerProcess process;
    ExpectServes(process.client());
    process.Signal(signal);
    EXPECT_THAT(process.WaitForExit(), Optional(0));
  }
}

TEST(LifecycleTest, SigtermLetsTheCallInFlightFinishAndSendsNewOnesElsewhere) {
  ServerProcess process({"--backend=reference", "--max-batch-requests=1", "--max-batch-work=1h",
                         "--max-inline-work=1ns"});
  ServerClient& client = process.client();
  EXPECT_EQ(client.Get("/readyz").status, 200);
  BusyWorker busy(client);
  process.Signal(SIGTERM);
  EXPECT_TRUE(WaitUntil([&] { return client.Get("/readyz").status == 503; }));
  EXPECT_EQ(client.Get("/healthz").status, 200);
  v1::AttendResponse response;
  EXPECT_THAT(Attend(client, MakeAttendRequest({}), &response),
              FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  busy.Finish();
  EXPECT_THAT(process.WaitForExit(), Optional(0));
  EXPECT_THAT(Attend(client, MakeAttendRequest({}), &response), FailsWith(grpc::UNAVAILABLE, ""));
}

TEST(LifecycleTest, HealthIsKnownForTheServerAndForEachService) {
  ServerProcess process;
  const auto channel = process.client().channel();
  std::string answer;
  EXPECT_TRUE(CallRaw(channel, kCheck, HealthRequest(""), &answer).ok());
  EXPECT_EQ(answer, kServing);
  for (const char* service : kServices) {
    answer.clear();
    const grpc::Status status = CallRaw(channel, kCheck, HealthRequest(service), &answer);
    EXPECT_TRUE(status.ok()) << service << ": " << status.error_code();
    EXPECT_EQ(answer, kServing) << service;
  }
  EXPECT_THAT(CallRaw(channel, kCheck, HealthRequest("no.such.Service")),
              FailsWith(grpc::NOT_FOUND, ""));
}

// A Watch call that runs until the server ends it.
class Watcher {
 public:
  // Returns when the first answer has come.
  explicit Watcher(ServerClient& client) {
    call_ = std::async(std::launch::async, [this, &client] {
      return StreamRaw(client.channel(), kWatch, {HealthRequest("")},
                       [this](const std::string& status) {
                         seen_.push_back(status);
                         if (seen_.size() == 1) is_open_.Notify();
                       });
    });
    EXPECT_TRUE(is_open_.WaitForNotificationWithTimeout(absl::Seconds(20)));
  }
  // All that it was told.
  const std::vector<std::string>& Finish() {
    call_.wait();
    return seen_;
  }

 private:
  absl::Notification is_open_;
  std::vector<std::string> seen_;
  std::future<grpc::Status> call_;
};

TEST(LifecycleTest, AWatcherIsToldOfTheDrain) {
  ServerProcess process({"--backend=reference", "--max-batch-requests=1", "--max-batch-work=1h",
                         "--max-inline-work=1ns"});
  Watcher watcher(process.client());
  BusyWorker busy(process.client());
  process.Signal(SIGTERM);
  std::string answer;
  EXPECT_TRUE(WaitUntil([&] {
    return CallRaw(process.client().channel(), kCheck, "", &answer).ok() && answer == kNotServing;
  }));
  busy.Finish();
  EXPECT_THAT(process.WaitForExit(), Optional(0));
  EXPECT_EQ(watcher.Finish(), (std::vector<std::string>{kServing, kNotServing}));
}

// A server with nothing in flight does not wait out the drain timeout for clients that only listen.
TEST(LifecycleTest, OpenWatchesDoNotHoldTheServerBack) {
  ServerProcess process({"--drain-timeout=20s"});
  Watcher watcher(process.client());
  process.Signal(SIGTERM);
  EXPECT_THAT(process.WaitForExit(absl::Seconds(10)), Optional(0));
  watcher.Finish();
}

TEST(LifecycleTest, IdleConnectionsDoNotHoldTheServerBack) {
  ServerProcess process({"--drain-timeout=20s"});
  ExpectServes(process.client());  // the connection stays, and nobody reads from it
  process.Signal(SIGTERM);
  EXPECT_THAT(process.WaitForExit(absl::Seconds(4)), Optional(0));
}

TEST(LifecycleTest, ReflectionListsTheServices) {
  ServerProcess process;
  std::string services;
  // ServerReflectionRequest{list_services: "*"}
  for (const std::string version : {"v1", "v1alpha"}) {
    services.clear();
    const grpc::Status status =
        StreamRaw(process.client().channel(),
                  "/grpc.reflection." + version + ".ServerReflection/ServerReflectionInfo",
                  {"\x3a\x01*"}, [&](const std::string& answer) { services += answer; });
    EXPECT_TRUE(status.ok()) << status.error_message();
    for (const char* service : kServices) EXPECT_THAT(services, HasSubstr(service));
    EXPECT_THAT(services, HasSubstr("grpc.health.v1.Health"));
    EXPECT_THAT(services, HasSubstr("grpc.reflection.v1.ServerReflection"));
  }
}

TEST(LifecycleTest, MetricsCountWhatHappened) {
  ServerProcess process;
  ServerClient& client = process.client();
  ExpectServes(client);
  v1::AttendResponse response;
  EXPECT_FALSE(Attend(client, {}, &response).ok());
  MustStep(client, MakeStep(MakePrompt(5), MustCreate(client).handle(), 0, 5));
  // A call is counted before its answer leaves.
  EXPECT_EQ(client.Metric("attention_calls_total{code=\"OK\"}"), 3);
  EXPECT_EQ(client.Metric("attention_calls_total{code=\"INVALID_ARGUMENT\"}"), 1);
  EXPECT_EQ(client.Metric("attention_sessions"), 1);
  EXPECT_EQ(client.Metric("attention_sessions_created_total"), 1);
  EXPECT_EQ(client.Metric("attention_tokens_appended_total"), 5);
  EXPECT_EQ(client.Metric("attention_query_rows_total"), 7);
  EXPECT_EQ(client.Metric("attention_kv_capacity_bytes"), 67108864);
  EXPECT_GT(client.Metric("attention_kv_used_bytes"), 0);
  EXPECT_GT(client.Metric("attention_flops_total"), 0);
  EXPECT_EQ(client.Metric("attention_call_seconds_count"), 4);
}

void ExpectJsonLines(const std::string& log) {
  for (const absl::string_view line : absl::StrSplit(log, '\n', absl::SkipEmpty())) {
    const auto json = nlohmann::json::parse(line.begin(), line.end(), nullptr,
                                            /*allow_exceptions=*/false);
    ASSERT_FALSE(json.is_discarded()) << line;
    for (const char* key : {"time", "level", "message"}) EXPECT_TRUE(json.contains(key)) << line;
  }
}

TEST(LifecycleTest, JsonLogsAreLinesOfJsonWithTheRequestId) {
  ServerProcess process({"--log-format=json", "--log-level=debug"});
  for (const bool is_good : {true, false}) {
    const auto context = NewContext("tenant \"quoted\"");
    context->AddMetadata("x-request-id", is_good ? "it-42" : "it-43");
    v1::AttendRequest request = MakeAttendRequest({});
    if (!is_good) request.clear_q();
    v1::AttendResponse response;
    process.client().attention().Attend(context.get(), request, &response);
  }
  process.Signal(SIGTERM);
  EXPECT_THAT(process.WaitForExit(), Optional(0));
  const std::string log = process.Log();
  ExpectJsonLines(log);
  EXPECT_THAT(log, HasSubstr(R"("request_id":"it-42")"));
  EXPECT_THAT(log, HasSubstr(R"("request_id":"it-43")"));
  EXPECT_THAT(log, HasSubstr("q is missing"));
  EXPECT_THAT(log, HasSubstr(R"("tenant":"tenant \"quoted\"")"));
}

// Calls whose records are more than a pipe holds.
void FillLog(ServerClient& client) {
  for (int i = 0; i < 1000; ++i) {
    v1::AttendResponse response;
    ASSERT_TRUE(Attend(client, MakeAttendRequest({}), &response).ok()) << i;
  }
}

TEST(LifecycleTest, ALogThatNobodyReadsHoldsNothingUp) {
  const std::string fifo = ::testing::TempDir() + absl::StrCat("log-", getpid());
  ServerProcess process({"--log-level=debug"},
                        absl::StrCat("mkfifo ", fifo, " && exec 3<>", fifo, " >&3 2>&3"));
  FillLog(process.client());
  std::filesystem::remove(fifo);
  process.Signal(SIGTERM);
  EXPECT_THAT(process.WaitForExit(), Optional(0));
}

TEST(LifecycleTest, ALogThatHasReachedItsSizeHoldsNothingUp) {
  ServerProcess process({"--log-level=debug"}, "ulimit -f 16");
  FillLog(process.client());
  process.Signal(SIGTERM);
  EXPECT_THAT(process.WaitForExit(), Optional(0));
}

TEST(LifecycleTest, ATakenPortIsNamedAndEndsWithOne) {
  ServerProcess first;
  const std::string taken = first.client().address();
  ServerProcess second({"--listen=" + taken});
  EXPECT_THAT(second.WaitForExit(), Optional(1));
  EXPECT_THAT(second.Log(), HasSubstr("listen: cannot bind " + taken));
  ServerProcess third({"--admin-listen=" + first.client().admin_address()});
  EXPECT_THAT(third.WaitForExit(), Optional(1));
  EXPECT_THAT(third.Log(),
              HasSubstr("admin-listen: cannot bind " + first.client().admin_address()));
  ExpectServes(first.client());
}

TEST(LifecycleTest, WhyItCannotStartIsJsonToo) {
  ServerProcess first;
  ServerProcess second({"--listen=" + first.client().address(), "--log-format=json"});
  EXPECT_THAT(second.WaitForExit(), Optional(1));
  EXPECT_THAT(second.Log(), HasSubstr("cannot bind"));
  ExpectJsonLines(second.Log());
}

TEST(LifecycleTest, AWrongFlagIsNamedAndEndsWithTwo) {
  for (const char* flag : {"--no-such-flag=1", "--threads=-1", "--log-format=xml",
                           "--kv-page-size=17", "--session-ttl=soon", "--listen=nowhere"}) {
    SCOPED_TRACE(flag);
    ServerProcess process({flag});
    EXPECT_THAT(process.WaitForExit(), Optional(2));
    const std::string name = std::string(flag).substr(0, std::string(flag).find('='));
    EXPECT_THAT(process.Log(), HasSubstr(name));
  }
}

TEST(LifecycleTest, AKilledServersSessionsAreLostAndItsSuccessorSaysSo) {
  v1::SessionHandle handle;
  std::string address;
  {
    ServerProcess before;
    handle = MustCreate(before.client()).handle();
    address = before.client().address();
    before.Signal(SIGKILL);
    EXPECT_THAT(before.WaitForExit(), Optional(-SIGKILL));
    v1::AttendResponse response;
    EXPECT_THAT(Attend(before.client(), MakeAttendRequest({}), &response),
                FailsWith(grpc::UNAVAILABLE, ""));
  }
  ServerProcess after({"--listen=" + address});
  EXPECT_THAT(RunStep(after.client(), MakeStep(MakePrompt(3), handle, 0, 3)).error(),
              FailsBecause(grpc::NOT_FOUND, "SESSION_LOST"));
  ExpectServes(after.client());
}

v1::AttendStreamRequest TinyRequest() {
  v1::AttendStreamRequest request;
  *request.mutable_request() = MakeAttendRequest({.q_lens = {1}, .kv_lens = {1}});
  return request;
}

// Uses one stream for all it takes, until the server ends it. A message that comes back is an
// answer or the refusal of a server that drains.
class LoadClient {
 public:
  explicit LoadClient(ServerClient& client) : client_(client) {}

  // Waits for each answer before it sends on.
  void AskAndListen() {
    const auto context = NewContext();
    const auto stream = client_.attention().AttendStream(context.get());
    while (stream->Write(TinyRequest()) && Read(*stream)) {
    }
    while (Read(*stream)) {
    }
    EXPECT_THAT(stream->Finish(), FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  }

  // Never stops sending, so that a request is on its way whenever the server ends the stream. It
  // may miss the reason: a connection that closes on unread data takes along what it still had to
  // say.
  void Flood() {
    const auto context = NewContext();
    const auto stream = client_.attention().AttendStream(context.get());
    const std::jthread writer([&] {
      while (stream->Write(TinyRequest())) {
      }
    });
    while (Read(*stream)) {
    }
    EXPECT_FALSE(stream->Finish().ok());
  }

  int num_answers() const { return num_answers_; }

 private:
  bool Read(grpc::ClientReaderWriter<v1::AttendStreamRequest, v1::AttendStreamResponse>& stream) {
    v1::AttendStreamResponse answer;
    if (!stream.Read(&answer)) return false;
    ++num_answers_;
    if (answer.has_error()) {
      EXPECT_THAT(answer.error(), FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
    }
    return true;
  }

  ServerClient& client_;
  std::atomic<int> num_answers_ = 0;
};

TEST(LifecycleTest, SigtermUnderLoadEndsEveryStreamAndTheServerWithZero) {
  for (const auto behave : {&LoadClient::AskAndListen, &LoadClient::AskAndListen,
                            &LoadClient::Flood, &LoadClient::Flood}) {
    ServerProcess process;
    std::deque<LoadClient> clients;
    std::vector<std::jthread> threads;
    for (int i = 0; i < 12; ++i) {
      LoadClient& client = clients.emplace_back(process.client());
      threads.emplace_back([&client, behave] { (client.*behave)(); });
    }
    EXPECT_TRUE(WaitUntil([&] {
      return std::all_of(clients.begin(), clients.end(),
                         [](const LoadClient& client) { return client.num_answers() >= 5; });
    }));
    process.Signal(SIGTERM);
    EXPECT_THAT(process.WaitForExit(), Optional(0)) << process.Log();
  }
}

}  // namespace
}  // namespace attention::testing
