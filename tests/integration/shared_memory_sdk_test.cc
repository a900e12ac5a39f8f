// The SDK and a server of its own host, which share memory without being told to.
#include <cstring>

#include "absl/time/clock.h"
#include "tests/support/session_driver.h"
#include "tests/support/sharing_client.h"

namespace attention::testing {
namespace {

using Use = client::SharedMemoryOptions::Use;

TestServer& SharingServer() {
  static TestServer server(Sharing("sdk"));
  return server;
}

// A copy of the view's bytes where the server reads them.
client::SharedTensor InPlace(client::Client& client, const client::TensorView& view) {
  auto tensor = client.AllocateShared(view.dtype, view.shape);
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  std::memcpy(tensor->data(), view.data, view.num_bytes());
  return *tensor;
}

TEST(SharedMemorySdkTest, LargeRequestsGoByItWithTheSameBits) {
  TestServer& server = SharingServer();
  const auto client = NewClient(server.address());
  EXPECT_EQ(client->shared_memory_usage().num_channels, 1);
  for (const v1::DType dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT16}) {
    const v1::AttendRequest wire =
        MakeAttendRequest({.dtype = dtype, .q_lens = {500, 12}, .kv_lens = {1500, 36}});
    const v1::AttendResponse expected = MustAttend(server, wire);
    const auto result = client->Attend(Sdk(wire));
    EXPECT_THAT(result, HasBitsOf(expected));
    EXPECT_EQ(result->timing.copied_bytes, 0);
    EXPECT_THAT(client->AttendFuture(Sdk(wire)).get(), HasBitsOf(expected));
  }
  EXPECT_EQ(client->shared_memory_usage().num_requests, 6);
  // A future is ready before the thread that made it so has let the call go.
  const absl::Time end = absl::Now() + absl::Seconds(10);
  while (client->shared_memory_usage().used_bytes > 0 && absl::Now() < end) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(client->shared_memory_usage().used_bytes, 0);
}

TEST(SharedMemorySdkTest, SmallRequestsTravel) {
  TestServer& server = SharingServer();
  const auto client = NewClient(server.address());
  const v1::AttendRequest wire = MakeAttendRequest({});
  EXPECT_THAT(client->Attend(Sdk(wire)), HasBitsOf(MustAttend(server, wire)));
  EXPECT_EQ(client->shared_memory_usage().num_requests, 0);
}

TEST(SharedMemorySdkTest, AResultKeepsItsMemoryBeyondTheClient) {
  TestServer& server = SharingServer();
  auto client = NewClient(server.address());
  const v1::AttendRequest wire = LargeRequest();
  const v1::AttendResponse expected = MustAttend(server, wire);
  auto result = client->Attend(Sdk(wire));
  const v1::AttendRequest other = LargeRequest(2);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(client->Attend(Sdk(other)).ok());
  EXPECT_GT(client->shared_memory_usage().used_bytes, 0);
  client.reset();
  EXPECT_THAT(result, HasBitsOf(expected));
}

TEST(SharedMemorySdkTest, TensorsOfAllocateSharedAreNotCopied) {
  TestServer& server = SharingServer();
  const auto client = NewClient(server.address());
  const v1::AttendRequest wire = LargeRequest();
  client::AttendRequest request = Sdk(wire);
  const client::SharedTensor q = InPlace(*client, request.q);
  const client::SharedTensor k = InPlace(*client, request.k);
  const client::SharedTensor v = InPlace(*client, request.v);
  EXPECT_TRUE(q.is_shared());
  request.q = q.view();
  request.k = k.view();
  request.v = v.view();
  const std::int64_t before = client->shared_memory_usage().used_bytes;
  const auto result = client->Attend(request);
  EXPECT_THAT(result, HasBitsOf(MustAttend(server, wire)));
  EXPECT_EQ(result->timing.copied_bytes, 0);
  // Nothing was added to what the tensors take but the result.
  EXPECT_LE(client->shared_memory_usage().used_bytes - before,
            static_cast<std::int64_t>(result->output.bytes().size()) + 64);
  // A result is a tensor like any other: it is sent from where it lies.
  request.q = result->output.view();
  EXPECT_TRUE(client->Attend(request).ok());
  EXPECT_EQ(client->shared_memory_usage().num_requests, 2);
}

TEST(SharedMemorySdkTest, SmallTensorsInPlaceAreSentInPlace) {
  TestServer& server = SharingServer();
  const auto client = NewClient(server.address());
  const v1::AttendRequest wire = MakeAttendRequest({});
  client::AttendRequest request = Sdk(wire);
  const client::SharedTensor k = InPlace(*client, request.k);
  request.k = k.view();
  EXPECT_THAT(client->Attend(request), HasBitsOf(MustAttend(server, wire)));
  EXPECT_EQ(client->shared_memory_usage().num_requests, 1);
}

// A prompt of one session, fed in steps by `step`, is answered as it is without a channel.
template <typename Step>
void ExpectSameSteps(client::Client& client, Step step) {
  const v1::AttendRequest prompt = MakePrompt(1200);
  v1::AttendResponse expected = MustAttend(SharingServer(), prompt);
  auto session = client.CreateSession(
      {.geometry = {.num_layers = 1, .num_kv_heads = 2, .head_dim_qk = 32, .head_dim_v = 32}});
  ASSERT_TRUE(session.ok()) << session.status();
  std::string output;
  for (std::int64_t begin = 0; begin < 1200; begin += 400) {
    const v1::Tensor q = Rows(prompt.q(), begin, begin + 400);
    const v1::Tensor k = Rows(prompt.k(), begin, begin + 400);
    const v1::Tensor v = Rows(prompt.v(), begin, begin + 400);
    client::LayerStep layer_step;
    layer_step.q = ViewOf(q);
    layer_step.k = ViewOf(k);
    layer_step.v = ViewOf(v);
    layer_step.config.is_causal = true;
    client::StepRequest request;
    request.steps.push_back(*session->MakeStep(layer_step));
    absl::StatusOr<client::StepResult> result = step(request);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(session->Accept(request.steps[0], result->results[0]).ok())
        << result->results[0].status;
    EXPECT_EQ(result->timing.copied_bytes, 0);
    output += result->results[0].output.bytes();
  }
  EXPECT_TRUE(output == expected.output().data());
  EXPECT_EQ(client.shared_memory_usage().num_requests, 3);
}

TEST(SharedMemorySdkTest, StepsGoByIt) {
  const auto client = NewClient(SharingServer().address());
  ExpectSameSteps(*client, [&](const auto& request) { return client->Step(request); });
}

TEST(SharedMemorySdkTest, StepsOnAStreamGoByIt) {
  const auto client = NewClient(SharingServer().address());
  auto stream = client->OpenStepStream();
  ASSERT_TRUE(stream.ok());
  ExpectSameSteps(*client, [&](const auto& request) { return (*stream)->Step(request); });
  EXPECT_TRUE((*stream)->Finish().ok());
}

TEST(SharedMemorySdkTest, CallsWithWeightsGoByIt) {
  TestServer& server = SharingServer();
  const auto client = NewClient(server.address());
  const v1::AttendRequest wire = LargeRequest();
  std::int64_t num_rows = 0;
  const auto result = client->AttendWithWeights(
      Sdk(wire), [&](const client::WeightsBlock& block) { num_rows += block.weights.shape()[0]; });
  EXPECT_THAT(result, HasBitsOf(MustAttend(server, wire)));
  EXPECT_EQ(num_rows, 512);
  EXPECT_EQ(client->shared_memory_usage().num_requests, 1);
}

TEST(SharedMemorySdkTest, ARefusedRequestIsToldAsWithoutIt) {
  TestServer& server = SharingServer();
  const auto client = NewClient(server.address());
  const auto plain = NewClient(server.address(), {.shared_memory = {.use = Use::kOff}});
  const v1::AttendRequest wire = LargeRequest();
  client::AttendRequest request = Sdk(wire);
  request.q_lens = {500, 13};
  const absl::Status refusal = client->Attend(request).status();
  EXPECT_EQ(refusal, plain->Attend(request).status());
  EXPECT_TRUE(absl::IsInvalidArgument(refusal)) << refusal;
  EXPECT_EQ(client->shared_memory_usage().used_bytes, 0);
  EXPECT_THAT(client->Attend(Sdk(wire)), HasBitsOf(MustAttend(server, wire)));
}

// Options and a server with which a client has to do without shared memory.
struct Without {
  const char* name;
  client::SharedMemoryOptions options;
  ConfigChange server;
};

TEST(SharedMemoryFallBackTest, RequestsTravelWhenTheyCannotGoByIt) {
  const Without cases[] = {
      {"Off", {.use = Use::kOff}, Sharing("off")},
      {"NotOffered", {}, nullptr},
      {"NoRoomForTheRequest", {.max_bytes = kMegabyte}, Sharing("room")},
      {"BytesOfAConnection",
       {},
       Sharing(
           "bytes",
           [](server::ServerConfig& config) { config.max_shared_bytes_per_connection = 8192; })},
  };
  const v1::AttendRequest wire =
      MakeAttendRequest({.q_lens = {1000, 24}, .kv_lens = {3000, 72}});  // 2 MiB
  for (const Without& without : cases) {
    SCOPED_TRACE(without.name);
    TestServer server(without.server);
    const auto client = NewClient(server.address(), {.shared_memory = without.options});
    const v1::AttendResponse expected = MustAttend(server, wire);
    for (int i = 0; i < 3; ++i) EXPECT_THAT(client->Attend(Sdk(wire)), HasBitsOf(expected));
    EXPECT_EQ(client->shared_memory_usage().num_requests, 0);
    client::AttendRequest request = Sdk(wire);
    const client::SharedTensor v = InPlace(*client, request.v);
    request.v = v.view();
    EXPECT_THAT(client->Attend(request), HasBitsOf(expected));
  }
}

TEST(SharedMemoryFallBackTest, AUsersSecondClientSharesWhatIsLeft) {
  TestServer server(Sharing("second", [](server::ServerConfig& config) {
    config.max_shared_bytes_per_user = 40 * kMegabyte;
  }));
  const auto first = NewClient(server.address());
  const auto second = NewClient(server.address());
  const v1::AttendRequest wire = LargeRequest();
  const v1::AttendResponse expected = MustAttend(server, wire);
  EXPECT_THAT(first->Attend(Sdk(wire)), HasBitsOf(expected));
  EXPECT_THAT(second->Attend(Sdk(wire)), HasBitsOf(expected));
  EXPECT_EQ(first->shared_memory_usage().mapped_bytes, 32 * kMegabyte);
  EXPECT_EQ(second->shared_memory_usage().mapped_bytes, 8 * kMegabyte);
  EXPECT_EQ(second->shared_memory_usage().num_requests, 1);
}

TEST(SharedMemoryFallBackTest, MoreMemoryIsMadeWhenResultsHoldWhatThereIs) {
  TestServer& server = SharingServer();
  const auto client = NewClient(server.address());
  const v1::AttendRequest wire =
      MakeAttendRequest({.q_lens = {8000}, .kv_lens = {100}});  // 4 MiB in, 4 MiB out
  const v1::AttendResponse expected = MustAttend(server, wire);
  std::vector<absl::StatusOr<client::AttendResult>> results;
  for (int i = 0; i < 16; ++i) {
    // One that finds no room travels, and sees to it that there will be.
    EXPECT_TRUE(WaitUntil([&] { return client->Attend(Sdk(wire))->timing.copied_bytes == 0; }));
    results.push_back(client->Attend(Sdk(wire)));
  }
  for (const auto& result : results) EXPECT_THAT(result, HasBitsOf(expected));
  EXPECT_GT(client->shared_memory_usage().mapped_bytes, 32 * kMegabyte);
}

TEST(SharedMemoryFallBackTest, MemoryOfACallThatTimedOutIsNotUsedAgain) {
  TestServer server(Sharing("timeout", SlowBackend()));
  const auto client = NewClient(server.address(), {.retry_policy = client::RetryPolicy::None(),
                                                   .shared_memory = {.max_bytes = 4 * kMegabyte}});
  const v1::AttendRequest wire = MakeAttendRequest({.num_q_heads = 32,
                                                    .num_kv_heads = 32,
                                                    .head_dim_qk = 64,
                                                    .head_dim_v = 64,
                                                    .q_lens = {32},
                                                    .kv_lens = {32}});  // 768 KiB, 256 KiB
  const v1::AttendResponse expected = MustAttend(server, wire);
  BusyWorker busy(server);
  const auto late = client->Attend(Sdk(wire), {.timeout = absl::Milliseconds(50)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.status())) << late.status();
  EXPECT_EQ(client->shared_memory_usage().used_bytes, kMegabyte) << "abandoned";
  busy.Finish();
  // Whatever is answered lies elsewhere; once the region is full, another takes its place.
  std::vector<absl::StatusOr<client::AttendResult>> results;
  for (int i = 0; i < 12; ++i) {
    results.push_back(client->Attend(Sdk(wire)));
    EXPECT_THAT(results.back(), HasBitsOf(expected));
  }
  results.clear();
  EXPECT_TRUE(WaitUntil([&] {
    EXPECT_THAT(client->Attend(Sdk(wire)), HasBitsOf(expected));
    return client->shared_memory_usage().used_bytes == 0 &&
           client->shared_memory_usage().num_channels == 1;
  }));
}

TEST(SharedMemoryFallBackTest, AServerThatRestartsIsSharedWithAgain) {
  const std::string address = "unix:" + PathOf("restart");
  const ConfigChange change =
      Sharing("restart", [&](server::ServerConfig& config) { config.listen = {address}; });
  auto server = std::make_unique<TestServer>(change);
  const auto client = NewClient(address);
  const v1::AttendRequest wire = LargeRequest();
  const v1::AttendResponse expected = MustAttend(*server, wire);
  client::AttendRequest request = Sdk(wire);
  const client::SharedTensor k = InPlace(*client, request.k);
  request.k = k.view();
  EXPECT_THAT(client->Attend(request), HasBitsOf(expected));
  for (int i = 0; i < 2; ++i) {
    server.reset();
    server = std::make_unique<TestServer>(change);
    EXPECT_THAT(client->Attend(request), HasBitsOf(expected));
    const std::int64_t before = client->shared_memory_usage().num_requests;
    EXPECT_TRUE(WaitUntil([&] {
      EXPECT_THAT(client->Attend(request), HasBitsOf(expected));
      return client->shared_memory_usage().num_requests > before;
    }));
    EXPECT_EQ(client->Attend(request)->timing.copied_bytes, 0);
  }
}

TEST(SharedMemoryFallBackTest, EachOfTwoServersIsSharedWith) {
  TestServer a(Sharing("two-a")), b(Sharing("two-b"));
  const auto made = client::Client::Connect({.targets = {a.address(), b.address()}});
  ASSERT_TRUE(made.ok()) << made.status();
  const std::shared_ptr<client::Client>& client = *made;
  ASSERT_TRUE(client->WaitUntilReady(absl::Seconds(30)).ok());
  EXPECT_EQ(client->shared_memory_usage().num_channels, 2);
  const v1::AttendRequest wire = LargeRequest();
  const v1::AttendResponse expected = MustAttend(a, wire);
  client::AttendRequest request = Sdk(wire);
  const client::SharedTensor k = InPlace(*client, request.k);
  request.k = k.view();
  // To one of them the tensor is copied, as any other.
  for (int i = 0; i < 4; ++i) EXPECT_THAT(client->Attend(request), HasBitsOf(expected));
  EXPECT_EQ(client->shared_memory_usage().num_requests, 4);
  EXPECT_GT(a.Metric("attention_shared_memory_bytes"), 0);
  EXPECT_GT(b.Metric("attention_shared_memory_bytes"), 0);
}

TEST(SharedMemoryFallBackTest, AServerThatRestartsWithoutItIsSentTensors) {
  const std::string address = "unix:" + PathOf("without");
  const auto listen = [&](server::ServerConfig& config) { config.listen = {address}; };
  auto server = std::make_unique<TestServer>(Sharing("without", listen));
  const auto client = NewClient(address);
  const v1::AttendRequest wire = LargeRequest();
  const v1::AttendResponse expected = MustAttend(*server, wire);
  EXPECT_THAT(client->Attend(Sdk(wire)), HasBitsOf(expected));
  server.reset();
  server = std::make_unique<TestServer>(listen);
  for (int i = 0; i < 3; ++i) EXPECT_THAT(client->Attend(Sdk(wire)), HasBitsOf(expected));
  EXPECT_TRUE(WaitUntil([&] { return client->shared_memory_usage().num_channels == 0; }));
}

}  // namespace
}  // namespace attention::testing
