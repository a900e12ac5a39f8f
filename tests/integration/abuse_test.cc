// Clients that misbehave at full load: whatever they do, a neighbour's answers keep their bits,
// none of its calls fails, and the server's memory stays bounded.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "tests/support/raw_call.h"
#include "tests/support/raw_connection.h"
#include "tests/support/server_process.h"
#include "tests/support/session_driver.h"

extern char** environ;

namespace attention::testing {
namespace {

// Calls again and again, in a thread of its own, and compares every answer with the first.
class Neighbour {
 public:
  explicit Neighbour(ServerClient& server)
      : server_(server.address(), server.admin_address()),
        request_(MakeAttendRequest({.q_lens = {40}, .kv_lens = {300}})),
        expected_(MustAttend(server_, request_)),
        step_(MakeStep(MakePrompt(40), MustCreate(server_).handle(), 0, 40)),
        expected_step_(AsResponse(MustStep(server_, step_))),
        thread_([this] { Run(); }) {}

  // Every call so far has succeeded, with the right bits, and there were some.
  ~Neighbour() {
    is_done_ = true;
    thread_.join();
    EXPECT_EQ(failure_, "");
    EXPECT_GT(num_calls_, 0);
  }

 private:
  void Run() {
    while (!is_done_ && failure_.empty()) {
      v1::AttendResponse response;
      const grpc::Status status = Attend(server_, request_, &response);
      if (!status.ok()) failure_ = "Attend failed: " + status.error_message();
      if (status.ok() && !SameAnswer(response, expected_)) failure_ = "Attend has other bits";
      // The step was applied before: it attends again.
      const v1::SessionStepResult result = RunStep(server_, step_);
      if (result.has_error()) failure_ = "Step failed: " + result.error().message();
      if (!SameAnswer(AsResponse(result), expected_step_)) failure_ = "Step has other bits";
      ++num_calls_;
    }
  }

  ServerClient server_;
  const v1::AttendRequest request_;
  const v1::AttendResponse expected_;
  const v1::SessionStep step_;
  const v1::AttendResponse expected_step_;
  std::atomic<bool> is_done_{false};
  std::string failure_;
  int num_calls_ = 0;
  std::thread thread_;
};

class AbuseTest : public ::testing::Test {
 protected:
  AbuseTest() : server_(process_.client()), resident_before_(ResidentMib()) {}
  ~AbuseTest() override {
    // Caches of threads and connections; nothing that grows with what was sent.
    EXPECT_LT(ResidentMib() - resident_before_, most_growth_mib_);
    ExpectServes(server_);
  }

  double ResidentMib() {
    const auto rss = process_.ResidentBytes();
    return static_cast<double>(rss) / (1 << 20);
  }

  ServerProcess process_{{"--max-stream-bytes=4194304"}};
  ServerClient& server_;
  const double resident_before_;
  double most_growth_mib_ = 200;
};

// A varint of so many bytes that claims the most it can.
std::string Claim(int bytes) { return std::string(bytes - 1, '\xff') + "\x7f"; }

TEST_F(AbuseTest, GiantLengthsDeclaredInTinyMessages) {
  Neighbour neighbour(server_);
  // Field 1 to 9 of a request, or a tensor's data within q, said to be up to 2^63 bytes long; and
  // shapes whose product overflows.
  std::vector<std::string> messages;
  for (int field = 1; field <= 9; ++field) {
    for (const int bytes : {3, 4, 5, 8, 9, 10}) {
      messages.push_back(static_cast<char>(field << 3 | 2) + Claim(bytes) + "x");
      const std::string data = "\x1a" + Claim(bytes) + "x";
      messages.push_back("\x0a" + std::string(1, static_cast<char>(data.size())) + data);
    }
  }
  v1::AttendRequest huge = MakeAttendRequest({});
  for (int i = 0; i < 3; ++i) huge.mutable_q()->set_shape(i, std::int64_t{1} << 40);
  v1::AttendRequest overflow = huge;
  overflow.mutable_q()->set_shape(2, std::numeric_limits<std::int64_t>::max());
  for (int round = 0; round < 20; ++round) {
    for (const char* method :
         {"/attention.v1.AttentionService/Attend", "/attention.v1.SessionService/Step"}) {
      for (const std::string& message : messages) {
        const grpc::Status status = CallRaw(server_.channel(), method, message);
        ASSERT_EQ(status.error_code(), grpc::INVALID_ARGUMENT) << status.error_message();
      }
    }
    for (const v1::AttendRequest* request : {&huge, &overflow}) {
      v1::AttendResponse response;
      ASSERT_THAT(Attend(server_, *request, &response), FailsWith(grpc::INVALID_ARGUMENT, "q."));
    }
  }
}

TEST_F(AbuseTest, AMillionTinyMessages) {
  constexpr int kStreams = 4;
  static constexpr std::uint64_t kEach = 250'000;
  Neighbour neighbour(server_);
  std::vector<std::thread> threads;
  for (int i = 0; i < kStreams; ++i) {
    threads.emplace_back([this] {
      const auto context = NewContext("tiny", absl::Minutes(5));
      const auto stream = server_.attention().AttendStream(context.get());
      std::uint64_t num_answers = 0;
      std::thread reader([&] {
        v1::AttendStreamResponse answer;
        while (stream->Read(&answer)) {
          ++num_answers;
          if (answer.error().code() != grpc::INVALID_ARGUMENT) break;
        }
      });
      v1::AttendStreamRequest request;
      for (std::uint64_t id = 1; id <= kEach; ++id) {
        request.set_request_id(id);
        if (!stream->Write(request, grpc::WriteOptions().set_buffer_hint())) break;
      }
      stream->WritesDone();
      reader.join();
      EXPECT_EQ(num_answers, kEach) << stream->Finish().error_message();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(AbuseTest, ConnectionsThatTrickle) {
  constexpr int kConnections = 300;
  Neighbour neighbour(server_);
  std::vector<std::unique_ptr<RawConnection>> connections;
  for (int i = 0; i < kConnections; ++i) {
    connections.push_back(std::make_unique<RawConnection>(server_.address()));
    const RawConnection& connection = *connections.back();
    const std::string preface = RawConnection::Preface();
    switch (i % 3) {
      case 0:  // not even a whole preface
        connection.Send(preface.substr(0, 10));
        break;
      case 1:  // a call whose message never begins
        connection.Send(preface +
                        RawConnection::Headers("/attention.v1.SessionService/StepStream"));
        break;
      default:  // a message said to have 16 MiB, of which a byte comes now and then
        connection.Send(preface + RawConnection::Headers("/attention.v1.AttentionService/Attend") +
                        RawConnection::Data(std::string("\x00\x01\x00\x00\x00", 5)));
    }
  }
  for (int round = 0; round < 20; ++round) {
    for (int i = 2; i < kConnections; i += 3) connections[i]->Send(RawConnection::Data("\x0a"));
    absl::SleepFor(absl::Milliseconds(100));  // the pace is what is tested
  }
}

TEST_F(AbuseTest, StreamsThatAreNotRead) {
  constexpr int kStreams = 20;
  constexpr std::uint64_t kRequests = 100;  // of 2 MiB: 4 GiB, if they were all taken in
  // gRPC's flow-control windows come on top of what the server takes in: 900 MiB, from the third
  // second on (measured), whatever else is offered.
  most_growth_mib_ = 1500;
  Neighbour neighbour(server_);
  v1::AttendStreamRequest request;
  *request.mutable_request() = MakeAttendRequest({.q_lens = {64}, .kv_lens = {4096}});
  request.mutable_request()->mutable_returns()->set_weights(true);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::thread> writers;
  for (int i = 0; i < kStreams; ++i) {
    contexts.push_back(NewContext("lazy"));
    writers.emplace_back([this, &request, context = contexts.back().get()] {
      const auto stream = server_.attention().AttendStream(context);
      for (std::uint64_t id = 1; id <= kRequests && stream->Write(request); ++id) continue;
      stream->Finish();
    });
  }
  absl::SleepFor(absl::Seconds(3));  // time for what could pile up
  const double resident = ResidentMib();
  EXPECT_LT(resident - resident_before_, most_growth_mib_);
  for (const auto& context : contexts) context->TryCancel();
  for (std::thread& writer : writers) writer.join();
}

// A load generator, in a process of its own.
class Load {
 public:
  Load(const std::string& target, const std::string& workload, const std::string& length) {
    const std::vector<std::string> arguments = {ATTENTION_LOADGEN_BINARY,
                                                "--target=" + target,
                                                "--workload=" + workload,
                                                length,
                                                "--quiet",
                                                "--warmup=0",
                                                "--duration=1h",
                                                "--connect-timeout=1m",
                                                "--timeout=1m",
                                                "--concurrency=8",
                                                "--tenant=doomed"};
    std::vector<char*> argv;
    for (const std::string& argument : arguments) {
      argv.push_back(const_cast<char*>(argument.c_str()));
    }
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Load() { Kill(); }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  void Freeze() const { kill(pid_, SIGSTOP); }
  // Without notice.
  void Kill() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the load generator ended by itself, status " << status;
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
};

TEST_F(AbuseTest, ClientsKilledWhileTheirTensorsAreInFlight) {
  Neighbour neighbour(server_);
  for (int i = 0; i < 4; ++i) {
    const double answered = server_.Metric("attention_output_bytes_total");
    Load load(server_.address(), "attend", "--q-len=512");
    EXPECT_TRUE(WaitUntil(
        [&] { return server_.Metric("attention_output_bytes_total") > answered + (8 << 20); }));
  }
  EXPECT_TRUE(WaitUntil([&] { return server_.Metric("attention_queued_requests") == 0; }));
}

TEST_F(AbuseTest, KilledClientsLeaveNoSessionsBehind) {
  Neighbour neighbour(server_);
  const double sessions = server_.Metric("attention_sessions");
  const double kv_bytes = server_.Metric("attention_kv_used_bytes");
  for (int i = 1; i <= 8; ++i) {
    Load load(server_.address(), "decode", "--context=256");
    // While it makes its sessions, and when all eight take their steps.
    EXPECT_TRUE(WaitUntil([&] { return server_.Metric("attention_sessions") >= sessions + i; }));
    load.Kill();
    EXPECT_TRUE(WaitUntil([&] {
      return server_.Metric("attention_sessions") == sessions &&
             server_.Metric("attention_kv_used_bytes") == kv_bytes;
    }));
  }
}

TEST(FrozenClientTest, AClientThatDoesNotAnswerLosesItsSessions) {
  ServerProcess process({"--keepalive-interval=1s"});
  ServerClient& server = process.client();
  const Load load(server.address(), "decode", "--context=256");
  EXPECT_TRUE(WaitUntil([&] { return server.Metric("attention_sessions") == 8; }));
  load.Freeze();
  EXPECT_TRUE(WaitUntil([&] { return server.Metric("attention_sessions") == 0; }));
  EXPECT_EQ(server.Metric("attention_kv_used_bytes"), 0);
}

}  // namespace
}  // namespace attention::testing
