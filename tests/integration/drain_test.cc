// How a server ends: what is in flight is answered, and nobody holds it back.
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>

#include "tests/support/server_process.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Optional;

// Flags of a server that computes one request after another, slowly and not in slices.
std::vector<std::string> SlowFlags(std::vector<std::string> flags) {
  flags.insert(flags.end(), {"--backend=reference", "--max-batch-requests=1", "--max-batch-work=1h",
                             "--max-inline-work=1ns"});
  return flags;
}

// --- Clients that do not read ---

// A load generator that is stopped in the middle: its sockets stay open and fill up.
class FrozenClient {
 public:
  FrozenClient(ServerProcess& server, const std::string& target) {
    ServerClient& client = server.client();
    pid_ =
        Spawn({ATTENTION_LOADGEN_BINARY, "--target=" + target, "--workload=prefill", "--streams=2",
               "--concurrency=64", "--q-len=256", "--num-q-heads=64", "--num-kv-heads=1",
               "--shared-memory=off", "--duration=300s", "--warmup=0", "--quiet"},
              server.directory() + "/load");
    constexpr char kAnswers[] = "attention_output_bytes_total";
    EXPECT_TRUE(WaitUntil([&] { return client.Metric(kAnswers) > 64e6; }, absl::Seconds(60)));
    kill(pid_, SIGSTOP);
    // The work under way is computed; then nothing moves any more, with answers unsent.
    double last = -1;
    EXPECT_TRUE(WaitUntil([&] {
      const double before = std::exchange(last, client.Metric("attention_query_rows_total"));
      return last == before && client.Metric("attention_queued_requests") == 0;
    }));
    EXPECT_GT(client.Metric("attention_open_streams"), 0);
  }
  ~FrozenClient() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_ = -1;
};

// Limits far above what it takes, but far below the 20 s after which TCP would give the peer up.
constexpr absl::Duration kSoon = absl::Seconds(12);

TEST(DrainTest, AClientThatHasStoppedReadingByTcpDoesNotHoldTheServerBack) {
  ServerProcess server({"--drain-timeout=1s"});
  FrozenClient frozen(server, server.client().address());
  server.Signal(SIGTERM);
  EXPECT_THAT(server.WaitForExit(kSoon), Optional(0)) << server.Log();
}

TEST(DrainTest, AClientThatHasStoppedReadingByUnixSocketDoesNotHoldTheServerBack) {
  const std::string path = ::testing::TempDir() + "frozen-" + std::to_string(getpid()) + ".sock";
  ServerProcess server({"--drain-timeout=1s", "--listen=127.0.0.1:0,unix:" + path});
  FrozenClient frozen(server, "unix:" + path);
  server.Signal(SIGTERM);
  EXPECT_THAT(server.WaitForExit(kSoon), Optional(0)) << server.Log();
  std::filesystem::remove(path);
}

// --- Calls in flight ---

TEST(DrainTest, EveryCallIsAnsweredWhenTheTimeIsUp) {
  for (int round = 0; round < 3; ++round) {
    TestServer server(SlowBackend([](server::ServerConfig& config) {
      config.drain_timeout = absl::Milliseconds(1);
      config.completion_threads = 2;
    }));
    BusyWorker busy(server);
    std::vector<std::future<grpc::Status>> calls;
    for (int i = 0; i < 8; ++i) {
      calls.push_back(std::async(std::launch::async, [&server] {
        v1::AttendResponse response;
        return Attend(server, MakeAttendRequest({}), &response);
      }));
    }
    EXPECT_TRUE(WaitUntil([&] { return server.Metric("attention_queued_requests") == 8; }));
    server.DrainAndStop();
    for (auto& call : calls) EXPECT_THAT(call.get(), FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  }
}

TEST(DrainTest, CallsThatArriveWhileTheServerEndsAreAnsweredOrRefused) {
  for (int round = 0; round < 10; ++round) {
    TestServer server([](server::ServerConfig& config) {
      config.drain_timeout = absl::Milliseconds(1);
      config.completion_threads = 2;
    });
    std::atomic<int> num_answers{0};
    std::vector<std::future<grpc::Status>> callers;
    for (int i = 0; i < 4; ++i) {
      callers.push_back(std::async(std::launch::async, [&] {
        for (;;) {
          v1::AttendResponse response;
          const grpc::Status status = Attend(server, MakeAttendRequest({}), &response);
          ++num_answers;
          if (!status.ok()) return status;
        }
      }));
    }
    EXPECT_TRUE(WaitUntil([&] { return num_answers >= 20; }));
    server.DrainAndStop();
    for (auto& caller : callers) {
      EXPECT_THAT(caller.get().error_code(), AnyOf(grpc::UNAVAILABLE, grpc::CANCELLED));
    }
  }
}

TEST(DrainTest, AComputationThatDoesNotEndCostsTheCleanEnd) {
  ServerProcess server(SlowFlags({"--drain-timeout=1ms"}));
  ServerClient& client = server.client();
  const std::future<grpc::Status> call = std::async(std::launch::async, [&client] {
    v1::AttendResponse response;
    return Attend(client,
                  MakeAttendRequest({.head_dim_qk = 64, .q_lens = {8192}, .kv_lens = {8192}}),
                  &response);
  });
  EXPECT_TRUE(WaitUntil([&] { return client.Metric("attention_batch_requests_count") == 1; }));
  server.Signal(SIGTERM);
  EXPECT_THAT(server.WaitForExit(), Optional(4));
  EXPECT_THAT(server.Log(), HasSubstr("the drain has not ended after 1.001s"));
}

// --- Streams whose client has gone ---

TEST(DrainTest, AStreamThatIsCancelledWhileItsReadsArePausedEnds) {
  constexpr int kStreams = 8;
  constexpr int kUnanswered = 4;
  TestServer server(
      SlowBackend([](server::ServerConfig& config) { config.max_stream_requests = kUnanswered; }));
  BusyWorker busy(server);
  for (int i = 0; i < kStreams; ++i) {
    const auto context = NewContext();
    const auto stream = server.attention().AttendStream(context.get());
    v1::AttendStreamRequest request;
    *request.mutable_request() = MakeAttendRequest({});
    // One more than is read.
    for (int j = 0; j <= kUnanswered; ++j) ASSERT_TRUE(stream->Write(request));
    ASSERT_TRUE(WaitUntil(
        [&] { return server.Metric("attention_queued_requests") == kUnanswered * (i + 1); }));
    context->TryCancel();
    EXPECT_THAT(stream->Finish(), FailsWith(grpc::CANCELLED, ""));
  }
  EXPECT_TRUE(WaitUntil([&] {
    return server.Metric("attention_calls_total{code=\"CANCELLED\"}") == kStreams &&
           server.Metric("attention_open_streams") == 0;
  })) << server.Metric("attention_open_streams")
      << " are left";
  busy.Finish();
}

// --- Signals ---

TEST(DrainTest, ASecondSignalEndsTheProcessAtOnce) {
  for (const int signal : {SIGTERM, SIGINT}) {
    ServerProcess server(SlowFlags({"--drain-timeout=5m"}));
    BusyWorker busy(server.client());
    server.Signal(SIGTERM);
    EXPECT_TRUE(WaitUntil([&] { return server.client().Get("/readyz").status == 503; }));
    server.Signal(signal);
    EXPECT_THAT(server.WaitForExit(), Optional(128 + signal));
    EXPECT_THAT(server.Log(), HasSubstr("while draining, ending at once"));
  }
}

// A file of one layer's weights, all zero; sparse, so that it costs time to read and no disk.
void WriteSparseLayer(const std::string& path, int dim) {
  nlohmann::json header;
  std::int64_t offset = 0;
  for (const char* name : {"q", "k", "v", "o"}) {
    const std::int64_t end = offset + std::int64_t{4} * dim * dim;
    header[name] = {{"dtype", "F32"}, {"shape", {dim, dim}}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  const std::string text = header.dump();
  const std::uint64_t size = text.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&size), sizeof(size)) << text;
  file.close();
  std::filesystem::resize_file(path, sizeof(size) + size + static_cast<std::uint64_t>(offset));
}

TEST(DrainTest, ASignalIsHeardWhileLayersArePreloaded) {
  constexpr int kDim = 1024;
  const std::string folder = ::testing::TempDir() + "preload-" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  WriteSparseLayer(folder + "/zeros.safetensors", kDim);
  nlohmann::json layers = nlohmann::json::array();
  for (int i = 0; i < 2000; ++i) {
    layers.push_back({{"layer_id", "layer-" + std::to_string(i)},
                      {"file", "zeros.safetensors"},
                      {"model_dim", kDim},
                      {"num_q_heads", 8},
                      {"head_dim_qk", 128},
                      {"tensors", {{"w_q", "q"}, {"w_k", "k"}, {"w_v", "v"}, {"w_o", "o"}}}});
  }
  std::ofstream(folder + "/layers.json") << nlohmann::json{{"layers", layers}};
  ServerProcess server({"--preload-layers=" + folder + "/layers.json"});
  EXPECT_TRUE(WaitUntil([&] { return server.Log().find("preloading 2000") != std::string::npos; }))
      << server.Log();
  server.Signal(SIGTERM);
  EXPECT_THAT(server.WaitForExit(), Optional(0));
  EXPECT_THAT(server.Log(), HasSubstr("stopped before it was up"));
  EXPECT_THAT(server.Log(), Not(HasSubstr("listens on")));
  EXPECT_FALSE(std::filesystem::exists(server.directory() + "/ports.json"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace attention::testing
