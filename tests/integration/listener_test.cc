// Where the server takes calls: addresses, files of unix sockets, TLS, bounds of connections, and
// whether the server says that it is ready when nobody can reach it.
#include <arpa/inet.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <fstream>

#include "tests/support/raw_call.h"
#include "tests/support/raw_connection.h"
#include "tests/support/server_process.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Optional;

// grpc.health.v1 without generated code: HealthCheckResponse{status}.
constexpr char kCheck[] = "/grpc.health.v1.Health/Check";
const std::string kServing = "\x08\x01";
const std::string kNotServing = "\x08\x02";

TEST(ListenerTest, ReflectionOfManyBytesIsRefused) {
  ServerProcess process;
  const std::string huge = "\x22\xd0\x0f" + std::string(2000, 'x');  // file_containing_symbol
  EXPECT_THAT(StreamRaw(process.client().channel(),
                        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", {huge},
                        [](const std::string&) {}),
              FailsWith(grpc::INVALID_ARGUMENT, "expected at most 1024"));
}

TEST(ListenerTest, DuringTheDrainDelayTheServerIsNotReadyAndServes) {
  ServerProcess process({"--drain-delay=3s"});
  ServerClient& client = process.client();
  ExpectServes(client);
  process.Signal(SIGTERM);
  EXPECT_TRUE(WaitUntil([&] { return client.Get("/readyz").status == 503; }));
  EXPECT_EQ(client.Get("/readyz").body, "draining\n");
  std::string answer;
  EXPECT_TRUE(CallRaw(client.channel(), kCheck, "", &answer).ok());
  EXPECT_EQ(answer, kNotServing);
  ExpectServes(client);
  ServerClient arrival(client.address(), client.admin_address());
  ExpectServes(arrival);
  EXPECT_THAT(process.WaitForExit(), Optional(0));
}

// gRPC fails every call of a connection when one has more metadata than it takes.
TEST(ListenerTest, LargeMetadataDoesNotFailTheNeighboursOnItsConnection) {
  ServerProcess process({"--backend=reference", "--max-batch-requests=1", "--max-batch-work=1h",
                         "--max-inline-work=1ns"});
  BusyWorker in_flight(process.client());
  for (const std::size_t size : {std::size_t{9} << 10, std::size_t{200} << 10}) {
    const auto context = NewContext();
    context->AddMetadata("x-large", std::string(size, 'x'));
    v1::GetServerInfoResponse response;
    const grpc::Status status = process.client().info().GetServerInfo(context.get(), {}, &response);
    EXPECT_TRUE(status.ok()) << size << ": " << status.error_message();
  }
  in_flight.Finish();
}

TEST(ListenerTest, AConnectionThatResetsCallsByTheThousandIsClosedAndCounted) {
  ServerProcess process;
  ServerClient& client = process.client();
  const RawConnection flood(client.address());
  flood.Send(RawConnection::Preface());
  std::string frames;
  for (std::uint32_t stream = 1; stream < 40000; stream += 2) {
    frames += RawConnection::Headers("/attention.v1.AttentionService/Attend", stream) +
              RawConnection::Reset(stream);
    if (stream % 200 != 199) continue;
    if (!flood.SendAll(frames)) break;
    frames.clear();
    flood.DropInput();
  }
  EXPECT_TRUE(flood.IsClosedWithin(absl::Seconds(20)));
  EXPECT_EQ(client.Metric("attention_connections_reset_too_often_total"), 1);
  EXPECT_TRUE(WaitUntil(
      [&] { return process.Log().find("its connection is closed") != std::string::npos; }));
  ExpectServes(client);
}

TEST(ListenerTest, AUnixSocketListensBesideTcp) {
  const std::string path = ::testing::TempDir() + "attention-" + std::to_string(getpid()) + ".sock";
  {
    ServerProcess process({"--listen=127.0.0.1:0,unix:" + path});
    ExpectServes(process.client());
    ASSERT_EQ(process.addresses().size(), 2u);
    EXPECT_EQ(process.addresses()[1], "unix:" + path);
    ServerClient local(process.addresses()[1], process.client().admin_address());
    ExpectServes(local);
  }
  std::filesystem::remove(path);
}

TEST(ListenerTest, AUnixSocketHasTheModeOfItsListener) {
  const std::string path = ::testing::TempDir() + "mode-" + std::to_string(getpid()) + ".sock";
  {
    ServerProcess process({"--listen=127.0.0.1:0,unix:" + path + "?mode=0600"});
    ServerClient local("unix:" + path, process.client().admin_address());
    ExpectServes(local);
    EXPECT_EQ(std::filesystem::status(path).permissions(),
              std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  }
  std::filesystem::remove(path);
}

TEST(ListenerTest, ASecondServerDoesNotTakeAUnixSocket) {
  const std::string path = ::testing::TempDir() + "taken-" + std::to_string(getpid()) + ".sock";
  ServerProcess first({"--listen=127.0.0.1:0,unix:" + path});
  ServerClient local("unix:" + path, first.client().admin_address());
  ExpectServes(local);
  ServerProcess second({"--listen=127.0.0.1:0,unix:" + path});
  EXPECT_THAT(second.WaitForExit(), Optional(1));
  EXPECT_THAT(second.Log(),
              HasSubstr("listen: cannot bind unix:" + path + ": it is in use by a running server"));
  ServerClient again("unix:" + path, first.client().admin_address());
  ExpectServes(again);
}

TEST(ListenerTest, TheUnixSocketOfAKilledServerIsTakenOver) {
  const std::string path = ::testing::TempDir() + "stale-" + std::to_string(getpid()) + ".sock";
  {
    ServerProcess killed({"--listen=127.0.0.1:0,unix:" + path});
    killed.client();
    killed.Signal(SIGKILL);
    EXPECT_THAT(killed.WaitForExit(), Optional(-SIGKILL));
  }
  ASSERT_TRUE(std::filesystem::exists(path));
  ServerProcess next({"--listen=127.0.0.1:0,unix:" + path});
  ServerClient local("unix:" + path, next.client().admin_address());
  ExpectServes(local);
  next.Signal(SIGTERM);
  EXPECT_THAT(next.WaitForExit(), Optional(0));
  EXPECT_FALSE(std::filesystem::exists(path));
}

// The usual soft limit, as the hard one, so that it cannot be raised.
TEST(ListenerTest, AServerWhoseDescriptorsRanOutServesWhenTheyAreBack) {
  ServerProcess process({"--max-connections=192", "--max-connections-per-peer=192"},
                        "ulimit -n 256");
  ServerClient& client = process.client();
  ExpectServes(client);
  {
    std::deque<RawConnection> idle;
    for (int i = 0; i < 400; ++i) idle.emplace_back(client.address());
    EXPECT_TRUE(WaitUntil([&] {
      return client.Metric("attention_connections_refused_total{reason=\"all\"}") > 100;
    }));
    ExpectServes(client);  // who is connected is served
    EXPECT_THAT(process.Log(), HasSubstr("max-connections (192)"));
  }
  EXPECT_TRUE(WaitUntil([&] {
    ServerClient arrival(client.address(), client.admin_address());
    v1::AttendResponse response;
    return Attend(arrival, MakeAttendRequest({}), &response).ok();
  }));
}

TEST(ListenerTest, MoreConnectionsThanDescriptorsAreRefusedAtTheStart) {
  ServerProcess process({"--max-connections=500"}, "ulimit -n 256");
  EXPECT_THAT(process.WaitForExit(), Optional(1));
  EXPECT_THAT(process.Log(), HasSubstr("max-connections is 500, expected at most 192"));
}

TEST(ListenerTest, TheSoftLimitOfDescriptorsIsRaised) {
  ServerProcess process({}, "ulimit -Sn 100");
  ExpectServes(process.client());
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_THAT(process.Log(), HasSubstr(std::to_string(limit.rlim_max) + " files and sockets"));
}

// The socket of this process that listens at the port.
int ListeningDescriptor(const std::string& address) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename());
    sockaddr_in name{};
    socklen_t size = sizeof(name);
    int is_listening = 0;
    socklen_t flag_size = sizeof(is_listening);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &flag_size) == 0 &&
        is_listening != 0 && getsockname(fd, reinterpret_cast<sockaddr*>(&name), &size) == 0 &&
        address == "127.0.0.1:" + std::to_string(ntohs(name.sin_port))) {
      return fd;
    }
  }
  ADD_FAILURE() << "nothing listens at " << address;
  return -1;
}

TEST(ListenerTest, AServerThatNobodyCanReachIsNotReadyAndSaysWhy) {
  TestServer server;
  ExpectServes(server);  // this connection stays
  EXPECT_EQ(server.Get("/readyz").status, 200);
  const int listener = ListeningDescriptor(server.address());
  shutdown(listener, SHUT_RD);  // as if gRPC had lost it
  EXPECT_TRUE(WaitUntil([&] { return server.Get("/readyz").status == 503; }));
  EXPECT_THAT(server.Get("/readyz").body,
              HasSubstr("calls through " + server.address() + " were not answered"));
  EXPECT_EQ(server.Get("/healthz").status, 200) << "it may be busy, and is not restarted at once";
  const auto health_says = [&](const std::string& status) {
    std::string answer;
    return CallRaw(server.channel(), kCheck, "", &answer).ok() && answer == status;
  };
  EXPECT_TRUE(WaitUntil([&] { return health_says(kNotServing); }));
  listen(listener, 16);
  EXPECT_TRUE(WaitUntil([&] { return server.Get("/readyz").status == 200; }));
  EXPECT_TRUE(WaitUntil([&] { return health_says(kServing); }));
}

TEST(ListenerTest, EveryKindOfListenerAnswersTheServersOwnCalls) {
  const std::string files = std::string(ATTENTION_FIXTURES) + "/tls/";
  const std::string tls = "?tls-cert=" + files + "server.pem&tls-key=" + files + "server.key";
  const std::string path = ::testing::TempDir() + "probed-" + std::to_string(getpid()) + ".sock";
  ServerProcess process({"--listen=0.0.0.0:0,[::]:0,unix:" + path + ",127.0.0.1:0" + tls +
                             ",127.0.0.1:0" + tls + "&tls-client-ca=" + files + "server.pem",
                         "--trust-tenant-names-from-network=true"});
  ServerClient& client = process.client();
  EXPECT_TRUE(WaitUntil([&] {
    return client.Metric("attention_listener_probes_total{outcome=\"answered\"}") >= 20;
  }));
  EXPECT_EQ(client.Get("/readyz").status, 200) << client.Get("/readyz").body;
  EXPECT_EQ(client.Metric("attention_connections"), 0);
  EXPECT_EQ(client.Metric("attention_calls_total{code=\"OK\"}"), 0);
  process.Signal(SIGTERM);
  EXPECT_THAT(process.WaitForExit(), Optional(0));
  EXPECT_THAT(process.Log(), Not(HasSubstr("grpc:")));
}

TEST(ListenerTest, AKeyOfAnotherCertificateIsNamed) {
  ServerProcess process({"--listen=localhost:0?tls-cert=" + std::string(ATTENTION_FIXTURES) +
                         "/tls/server.pem&tls-key=" + std::string(ATTENTION_FIXTURES) +
                         "/tls/server.pem"});
  EXPECT_THAT(process.WaitForExit(), Optional(1));
  EXPECT_THAT(process.Log(), HasSubstr("a PEM file with a private key"));
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(ListenerTest, OneListenerMayHaveTlsAndTheNextNone) {
  const std::string files = std::string(ATTENTION_FIXTURES) + "/tls/";
  ServerProcess process({"--listen=127.0.0.1:0,localhost:0?tls-cert=" + files +
                         "server.pem&tls-key=" + files + "server.key"});
  ExpectServes(process.client());
  const std::string& secure = process.addresses()[1];
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = ReadFile(files + "server.pem");
  const auto stub =
      v1::AttentionService::NewStub(grpc::CreateChannel(secure, grpc::SslCredentials(options)));
  v1::AttendResponse response;
  const grpc::Status status = stub->Attend(NewContext().get(), MakeAttendRequest({}), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  const auto plain = v1::AttentionService::NewStub(
      grpc::CreateChannel(secure, grpc::InsecureChannelCredentials()));
  EXPECT_THAT(plain->Attend(NewContext().get(), MakeAttendRequest({}), &response),
              FailsWith(grpc::UNAVAILABLE, ""));
}

TEST(ListenerTest, ACertificateThatCannotBeReadIsNamed) {
  ServerProcess process({"--listen=localhost:0?tls-cert=/nowhere.pem&tls-key=/nowhere.key"});
  EXPECT_THAT(process.WaitForExit(), Optional(1));
  EXPECT_THAT(process.Log(), HasSubstr("tls-cert is '/nowhere.pem'"));
}

}  // namespace
}  // namespace attention::testing
