// The SDK with a shared-memory channel, and without one. The server is in this process and answers
// as each test wants.
#include "client/internal/shared_memory/shared_memory_channels.h"

#include <gmock/gmock.h>

#include <cstring>
#include <future>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "attention/client/errors.h"
#include "tests/unit/client/fake_layer.h"
#include "tests/unit/client/fake_server.h"
#include "tests/unit/client/fake_shared_memory_channel.h"

namespace attention::client {
namespace {

constexpr std::int64_t kMegabyte = std::int64_t{1} << 20;
// q, k and v of 128 KiB each, and an output of as much.
constexpr std::int64_t kRows = 512;
const Shape kShape = {kRows, 1, 64};
constexpr std::size_t kTensorBytes = kRows * 64 * sizeof(float);

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

class SharedMemoryChannelsTest : public testing::Test {
 protected:
  SharedMemoryChannelsTest() {
    server_.on_get_server_info = [this](auto*, auto&, auto* response) {
      response->set_shared_memory_socket(channel_->path());
      response->set_server_epoch(FakeSharedMemoryChannel::kEpoch);
      return grpc::Status::OK;
    };
    server_.on_attend = [this](auto*, const v1::AttendRequest& request, auto* response) {
      return Echo(request, response);
    };
    server_.on_step = [this](auto*, const v1::StepRequest& request, auto* response) {
      return EchoSteps(request, response);
    };
    for (std::size_t i = 0; i < values_.size(); ++i) values_[i] = static_cast<float>(i);
  }

  void StartChannel(FakeSharedMemoryChannel::Handler handler = nullptr) {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    channel_ = std::make_unique<FakeSharedMemoryChannel>(test->name(), std::move(handler));
  }

  std::shared_ptr<Client> Connect(ClientOptions options = {}) {
    auto client = server_.Connect(std::move(options));
    EXPECT_TRUE(client->WaitUntilReady(absl::Seconds(20)).ok());
    return client;
  }

  // The bytes of a tensor, wherever they lie; null when that is nowhere.
  const char* BytesOf(const v1::Tensor& tensor) const {
    if (!tensor.has_shared_memory()) return tensor.data().data();
    return channel_->At(tensor.shared_memory(), kTensorBytes);
  }

  // Answers with v as the output, and remembers how the request came.
  template <typename Request, typename Response>
  grpc::Status Echo(const Request& request, Response* response) {
    ++num_requests_;
    if (request.v().has_shared_memory()) ++num_shared_;
    const char* v = BytesOf(request.v());
    if (v == nullptr) return RegionNotFound();
    v1::Tensor* output = response->mutable_output();
    output->set_dtype(request.v().dtype());
    *output->mutable_shape() = request.v().shape();
    if (!request.has_output_to()) {
      output->set_data(v, kTensorBytes);
      return grpc::Status::OK;
    }
    std::memcpy(channel_->At(request.output_to(), kTensorBytes), v, kTensorBytes);
    *output->mutable_shared_memory() = request.output_to();
    return grpc::Status::OK;
  }

  grpc::Status EchoSteps(const v1::StepRequest& request, v1::StepResponse* response) {
    for (const v1::SessionStep& step : request.steps()) {
      v1::SessionStepResult* result = response->add_results();
      if (is_lost_ && step.v().has_shared_memory()) {
        ++num_lost_;
        result->mutable_error()->set_code(grpc::NOT_FOUND);
        result->mutable_error()->set_reason("REGION_NOT_FOUND");
        continue;
      }
      EXPECT_TRUE(Echo(step, result).ok());
    }
    return grpc::Status::OK;
  }

  static grpc::Status RegionNotFound() {
    return ServerError(grpc::NOT_FOUND, "no such region", "REGION_NOT_FOUND");
  }

  AttendRequest Request() const {
    const TensorView view(values_, kShape);
    return {.q = view, .k = view, .v = view};
  }
  StepRequest Steps() const {
    const TensorView view(values_, kShape);
    StepRequest request;
    request.steps.resize(2);
    for (SessionStep& step : request.steps) {
      step.expected_position = 0;
      step.k = step.v = step.q = view;
    }
    return request;
  }
  void ExpectEcho(const absl::StatusOr<AttendResult>& result) const {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->output.shape(), kShape);
    EXPECT_EQ(std::memcmp(result->output.bytes().data(), values_.data(), kTensorBytes), 0);
  }
  void ExpectEcho(const absl::StatusOr<StepResult>& result) const {
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(result->results.size(), 2u);
    for (const SessionStepResult& step : result->results) {
      ASSERT_TRUE(step.status.ok()) << step.status;
      EXPECT_EQ(std::memcmp(step.output.bytes().data(), values_.data(), kTensorBytes), 0);
    }
  }

  std::vector<float> values_ = std::vector<float>(kTensorBytes / sizeof(float));
  std::unique_ptr<FakeSharedMemoryChannel> channel_;
  std::atomic<int> num_requests_ = 0;
  std::atomic<int> num_shared_ = 0;
  std::atomic<int> num_lost_ = 0;
  std::atomic<bool> is_lost_ = false;
  FakeServer server_;
};

TEST_F(SharedMemoryChannelsTest, TensorsAndOutputsOfLargeRequestsLieInIt) {
  StartChannel();
  const auto client = Connect();
  ExpectEcho(client->Attend(Request()));
  ExpectEcho(client->Step(Steps()));
  EXPECT_EQ(num_shared_, 3);
  EXPECT_EQ(client->shared_memory_usage().num_requests, 2);
  EXPECT_TRUE(Eventually([&] { return client->shared_memory_usage().used_bytes == 0; }));
}

TEST_F(SharedMemoryChannelsTest, OffMeansThatNothingIsAskedOrShared) {
  StartChannel();
  const auto client = Connect({.shared_memory = {.use = SharedMemoryOptions::Use::kOff}});
  ExpectEcho(client->Attend(Request()));
  EXPECT_EQ(num_shared_, 0);
  EXPECT_EQ(channel_->num_regions(), 0u);
  EXPECT_FALSE(client->AllocateShared(DType::kFloat32, kShape)->is_shared());
}

TEST_F(SharedMemoryChannelsTest, CallsDoNotWaitForTheChannel) {
  StartChannel();
  const auto release = std::make_shared<absl::Notification>();  // the server may be late
  server_.on_get_server_info = [release](auto*, auto&, auto*) {
    release->WaitForNotification();
    return grpc::Status::OK;
  };
  const auto client = server_.Connect();
  ExpectEcho(client->Attend(Request()));
  EXPECT_EQ(num_shared_, 0);
  release->Notify();
}

TEST_F(SharedMemoryChannelsTest, AClientGoesWhileItsChannelIsBeingOpened) {
  StartChannel();
  // Shared: once the client has cancelled, nobody waits for the server to be done with them.
  const auto asked = std::make_shared<absl::Notification>();
  const auto release = std::make_shared<absl::Notification>();
  server_.on_get_server_info = [asked, release](auto*, auto&, auto*) {
    asked->Notify();
    release->WaitForNotification();
    return grpc::Status::OK;
  };
  auto client = server_.Connect();
  ExpectEcho(client->Attend(Request()));
  asked->WaitForNotification();
  client.reset();
  release->Notify();
}

TEST_F(SharedMemoryChannelsTest, TheSocketOfAnotherServerIsLeftAlone) {
  StartChannel([](auto&, auto, auto* response) {
    response->mutable_create()->set_server_epoch(FakeSharedMemoryChannel::kEpoch + 1);
  });
  const auto client = Connect();
  ExpectEcho(client->Attend(Request()));
  EXPECT_EQ(client->shared_memory_usage().num_channels, 0);
  EXPECT_EQ(num_shared_, 0);
}

TEST_F(SharedMemoryChannelsTest, AServerOfAnotherHostIsSentTensors) {
  StartChannel();
  server_.on_get_server_info = [](auto*, auto&, auto* response) {
    response->set_shared_memory_socket("/nowhere/channel.sock");
    return grpc::Status::OK;
  };
  const auto client = Connect();
  ExpectEcho(client->Attend(Request()));
  EXPECT_EQ(num_shared_, 0);
}

TEST_F(SharedMemoryChannelsTest, ARefusedRegionIsTriedSmaller) {
  StartChannel([](auto&, std::int64_t size, auto* response) {
    if (size <= 4 * kMegabyte) return;
    response->mutable_error()->set_code(grpc::RESOURCE_EXHAUSTED);
    response->mutable_error()->set_reason("QUOTA_EXCEEDED");
  });
  const auto client = Connect();
  ExpectEcho(client->Attend(Request()));
  EXPECT_EQ(num_shared_, 1);
  EXPECT_EQ(client->shared_memory_usage().mapped_bytes, 4 * kMegabyte);
}

TEST_F(SharedMemoryChannelsTest, ALostRegionIsMadeUpForByTheTensorsAndOfferedAgain) {
  StartChannel();
  const auto client = Connect();
  server_.on_attend = [&](auto*, const v1::AttendRequest& request, auto* response) {
    if (is_lost_ && request.v().has_shared_memory()) {
      ++num_lost_;
      return RegionNotFound();
    }
    return Echo(request, response);
  };
  is_lost_ = true;
  ExpectEcho(client->Attend(Request()));
  EXPECT_EQ(num_lost_, 1);
  EXPECT_EQ(num_shared_, 0);
  is_lost_ = false;
  EXPECT_TRUE(Eventually([&] {
    ExpectEcho(client->Attend(Request()));
    return num_shared_ > 0;
  }));
  EXPECT_EQ(channel_->num_regions(), 2u);
}

TEST_F(SharedMemoryChannelsTest, ARegionThatAStepDoesNotFindIsMadeUpFor) {
  StartChannel();
  const auto client = Connect();
  is_lost_ = true;
  ExpectEcho(client->Step(Steps()));
  EXPECT_EQ(num_lost_, 2);
  EXPECT_EQ(num_requests_, 2);
}

TEST_F(SharedMemoryChannelsTest, ARegionThatAStreamDoesNotFindIsMadeUpFor) {
  StartChannel();
  server_.on_step_stream = [&](auto*, auto* stream) {
    v1::StepStreamRequest request;
    while (stream->Read(&request)) {
      v1::StepStreamResponse response;
      response.set_request_id(request.request_id());
      EXPECT_TRUE(EchoSteps(request.request(), response.mutable_response()).ok());
      stream->Write(response);
    }
    return grpc::Status::OK;
  };
  const auto client = Connect();
  auto stream = client->OpenStepStream();
  ASSERT_TRUE(stream.ok());
  ExpectEcho((*stream)->Step(Steps()));
  EXPECT_EQ(num_shared_, 2);
  is_lost_ = true;
  ExpectEcho((*stream)->Step(Steps()));
  EXPECT_EQ(num_lost_, 2);
  EXPECT_TRUE((*stream)->Finish().ok());
}

TEST_F(SharedMemoryChannelsTest, StepsThatHaveOvertakenALostOneAreSentAgainBehindIt) {
  StartChannel();
  OneLayer layer;
  server_.on_step_stream = [&](auto*, auto* stream) { return layer.Serve(stream); };
  const auto client = Connect();
  auto stream = client->OpenStepStream();
  ASSERT_TRUE(stream.ok());
  const TensorView large(values_, kShape);
  const TensorView small(values_.data(), DType::kFloat32, {1, 1, 64});
  layer.is_lost = true;
  std::vector<std::future<absl::StatusOr<StepResult>>> answers;
  std::vector<std::int64_t> expected;
  std::int64_t position = 0;
  for (int i = 0; i < 12; ++i) {
    // Appends by shared memory and by message, and steps that attend over whatever is there.
    SessionStep step{.handle = {.session_id = "one"}};
    if (i % 3 != 2) {
      step.k = step.v = i % 3 == 0 ? large : small;
      step.expected_position = position;
      position += step.k.shape[0];
    } else {
      step.q = small;
    }
    expected.push_back(position);
    answers.push_back((*stream)->StepFuture({.steps = {step}}));
  }
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto result = answers[i].get();
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(result->results[0].status.ok()) << i << ": " << result->results[0].status;
    EXPECT_EQ(result->results[0].position, expected[i]) << i;
  }
  EXPECT_EQ(layer.length(), position);
  EXPECT_TRUE((*stream)->Finish().ok());
}

TEST_F(SharedMemoryChannelsTest, AFinishingStreamStillSendsALostStepAgain) {
  StartChannel();
  OneLayer layer;
  absl::Notification is_finishing;
  server_.on_step_stream = [&](auto*, auto* stream) {
    is_finishing.WaitForNotification();
    return layer.Serve(stream);
  };
  const auto client = Connect();
  auto stream = client->OpenStepStream();
  ASSERT_TRUE(stream.ok());
  const TensorView large(values_, kShape);
  layer.is_lost = true;
  auto answer = (*stream)->StepFuture(
      {.steps = {
           {.handle = {.session_id = "one"}, .expected_position = 0, .k = large, .v = large}}});
  std::thread finisher([&] { EXPECT_TRUE((*stream)->Finish().ok()); });
  is_finishing.Notify();
  const auto result = answer.get();
  finisher.join();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->results[0].status.ok()) << result->results[0].status;
}

TEST_F(SharedMemoryChannelsTest, ACallWithWeightsIsMadeUpFor) {
  StartChannel();
  const auto client = Connect();
  server_.on_attend_stream = [&](auto*, auto* stream) {
    v1::AttendStreamRequest request;
    EXPECT_TRUE(stream->Read(&request));
    v1::AttendStreamResponse response;
    response.set_request_id(request.request_id());
    response.set_is_last(true);
    if (request.request().v().has_shared_memory() && num_lost_++ == 0) {
      response.mutable_error()->set_code(grpc::NOT_FOUND);
      response.mutable_error()->set_reason("REGION_NOT_FOUND");
    } else {
      EXPECT_TRUE(Echo(request.request(), response.mutable_response()).ok());
    }
    stream->Write(response);
    return grpc::Status::OK;
  };
  ExpectEcho(client->AttendWithWeights(Request(), [](WeightsBlock) {}));
  EXPECT_EQ(num_lost_, 1);
  EXPECT_EQ(num_shared_, 0);
}

TEST_F(SharedMemoryChannelsTest, AClosedConnectionIsOpenedAgain) {
  StartChannel();
  const auto client = Connect();
  ExpectEcho(client->Attend(Request()));
  channel_->Hang();
  EXPECT_TRUE(Eventually([&] { return client->shared_memory_usage().num_channels == 0; }));
  EXPECT_TRUE(Eventually([&] {
    ExpectEcho(client->Attend(Request()));
    return num_shared_ > 1;
  }));
}

TEST_F(SharedMemoryChannelsTest, ARetrySendsTheSameTensorsAndAsksForTheOutputElsewhere) {
  StartChannel();
  std::vector<v1::AttendRequest> attempts;
  server_.on_attend = [&](auto*, const v1::AttendRequest& request, auto* response) {
    attempts.push_back(request);
    if (attempts.size() == 1) return grpc::Status(grpc::UNAVAILABLE, "who knows what I still do");
    return Echo(request, response);
  };
  const auto client = Connect();
  ExpectEcho(client->Attend(Request()));
  ASSERT_EQ(attempts.size(), 2u);
  EXPECT_EQ(attempts[0].v().SerializeAsString(), attempts[1].v().SerializeAsString());
  EXPECT_NE(attempts[0].output_to().offset(), attempts[1].output_to().offset());
  // The first attempt's inputs and output; the second one's output is let go by the call's thread.
  EXPECT_TRUE(Eventually([&] {
    return client->shared_memory_usage().used_bytes == static_cast<std::int64_t>(4 * kTensorBytes);
  })) << client->shared_memory_usage().used_bytes;
}

TEST_F(SharedMemoryChannelsTest, ARefusalLeavesNothingBehind) {
  StartChannel();
  for (const grpc::Status& refusal : {grpc::Status(grpc::INVALID_ARGUMENT, "no"),
                                      ServerError(grpc::RESOURCE_EXHAUSTED, "full", "QUEUE_FULL"),
                                      ServerError(grpc::UNAVAILABLE, "draining", "DRAINING")}) {
    server_.on_attend = [&](auto*, auto&, auto*) { return refusal; };
    const auto client = Connect({.retry_policy = RetryPolicy::None()});
    EXPECT_FALSE(client->Attend(Request()).ok());
    EXPECT_TRUE(Eventually([&] { return client->shared_memory_usage().used_bytes == 0; }))
        << refusal.error_message();
  }
}

TEST_F(SharedMemoryChannelsTest, ACancelledCallsMemoryIsNotLentAgain) {
  StartChannel();
  absl::Notification arrived, release;
  server_.on_attend = [&](auto*, const v1::AttendRequest& request, auto* response) {
    if (!arrived.HasBeenNotified()) {
      arrived.Notify();
      release.WaitForNotification();
    }
    return Echo(request, response);
  };
  const auto client = Connect();
  std::stop_source source;
  Future<AttendResult> cancelled =
      client->AttendFuture(Request(), {.cancellation = source.get_token()});
  arrived.WaitForNotification();
  source.request_stop();
  EXPECT_TRUE(absl::IsCancelled(cancelled.get().status()));
  const auto other = client->Attend(Request());
  release.Notify();  // and now the server writes
  EXPECT_TRUE(Eventually([&] { return num_requests_ == 2; }));
  ExpectEcho(other);
  EXPECT_EQ(client->shared_memory_usage().used_bytes, static_cast<std::int64_t>(5 * kTensorBytes));
}

TEST_F(SharedMemoryChannelsTest, AFullRegionOfAbandonedMemoryIsReplaced) {
  StartChannel();
  server_.on_attend = [](auto*, auto&, auto*) { return grpc::Status(grpc::UNKNOWN, "gone"); };
  const auto client = Connect({.shared_memory = {.max_bytes = 2 * kMegabyte}});
  for (int i = 0; i < 8; ++i) EXPECT_FALSE(client->Attend(Request()).ok());
  EXPECT_TRUE(Eventually([&] {
    EXPECT_FALSE(client->Attend(Request()).ok());
    return !channel_->released().empty();
  }));
  EXPECT_LE(client->shared_memory_usage().mapped_bytes, 2 * kMegabyte);
}

TEST_F(SharedMemoryChannelsTest, AnOutputElsewhereThanAskedForIsAnError) {
  StartChannel();
  server_.on_attend = [&](auto*, const v1::AttendRequest& request, auto* response) {
    const grpc::Status status = Echo(request, response);
    response->mutable_output()->mutable_shared_memory()->set_offset(8);
    return status;
  };
  EXPECT_TRUE(absl::IsInternal(Connect()->Attend(Request()).status()));
}

TEST_F(SharedMemoryChannelsTest, AWrongTensorIsToldAsWithoutAChannel) {
  StartChannel();
  const auto client = Connect();
  AttendRequest request = Request();
  request.k.data = nullptr;
  EXPECT_TRUE(absl::IsInvalidArgument(client->Attend(request).status()));
  request = Request();
  request.bias = TensorView(values_.data(), DType::kFloat32, {-1, 5, 5});
  EXPECT_TRUE(absl::IsInvalidArgument(client->Attend(request).status()));
}

TEST_F(SharedMemoryChannelsTest, AllocateSharedNeverFailsForWantOfAChannel) {
  StartChannel();
  const auto client = Connect({.shared_memory = {.max_bytes = kMegabyte}});
  const auto shared = client->AllocateShared(DType::kBFloat16, {4, 4});
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_TRUE(shared->is_shared());
  EXPECT_EQ(shared->halves().size(), 16u);
  EXPECT_TRUE(shared->floats().empty());
  const auto large = client->AllocateShared(DType::kFloat32, {kMegabyte});
  ASSERT_TRUE(large.ok()) << large.status();
  EXPECT_FALSE(large->is_shared());
  EXPECT_EQ(large->floats().size(), static_cast<std::size_t>(kMegabyte));
  EXPECT_TRUE(absl::IsInvalidArgument(client->AllocateShared(DType::kFloat32, {-1}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      client->AllocateShared(DType::kFloat32, {std::int64_t{1} << 62}).status()));
}

}  // namespace
}  // namespace attention::client
