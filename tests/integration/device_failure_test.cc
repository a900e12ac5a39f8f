// Backends that throw, or take long to come back: calls are answered, and other calls served.
#include <atomic>
#include <future>
#include <new>
#include <stdexcept>

#include "absl/synchronization/notification.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/raw_call.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr std::int64_t kLength = 5;

class DeviceFailureTest : public ::testing::Test {
 protected:
  DeviceFailureTest() {
    faults_.before_call = [this](std::string_view call) {
      if (call == "Supports" && on_supports_) on_supports_();
      if (call == "Run" && on_run_) on_run_();
    };
  }
  grpc::Status CallAttend() {
    v1::AttendResponse response;
    return Attend(server_, MakePrompt(kLength), &response);
  }
  grpc::Status CallExplain() {
    v1::ExplainRequest request;
    request.set_num_q_heads(1);
    request.set_num_kv_heads(1);
    request.set_head_dim_qk(8);
    request.set_head_dim_v(8);
    request.set_dtype(v1::DTYPE_FLOAT32);
    v1::ExplainResponse response;
    return server_.info().Explain(NewContext().get(), request, &response);
  }
  grpc::Status CallCreateSession() {
    v1::CreateSessionRequest request;
    request.mutable_geometry()->set_num_layers(1);
    request.mutable_geometry()->set_num_kv_heads(1);
    request.mutable_geometry()->set_head_dim_qk(8);
    request.mutable_geometry()->set_head_dim_v(8);
    request.mutable_geometry()->set_kv_dtype(v1::DTYPE_FLOAT32);
    v1::CreateSessionResponse response;
    return server_.sessions().CreateSession(NewContext().get(), request, &response);
  }

  Faults faults_;
  std::function<void()> on_supports_;
  std::function<void()> on_run_;
  std::function<void()> on_made_again_;
  std::atomic<int> num_made_{0};
  // One thread serves all calls, and computes the small ones.
  TestServer server_{[](server::ServerConfig& config) {
                       config.completion_threads = 1;
                       config.workers = 1;
                       config.max_inline_work = absl::Seconds(1);
                       config.max_batch_work = absl::Seconds(1);
                     },
                     [this](std::string_view, const BackendOptions&) {
                       if (num_made_++ > 0 && on_made_again_) on_made_again_();
                       return std::make_unique<FaultyBackend>(faults_);
                     }};
};

TEST_F(DeviceFailureTest, WhatAHandlerThrowsIsTheAnswerAndTheServerGoesOn) {
  for (int round = 0; round < 3; ++round) {
    on_supports_ = [] { throw std::bad_alloc(); };
    EXPECT_THAT(CallExplain(), FailsWith(grpc::RESOURCE_EXHAUSTED, "out of memory"));
    EXPECT_THAT(CallCreateSession(), FailsWith(grpc::RESOURCE_EXHAUSTED, "out of memory"));
    on_supports_ = [] { throw std::runtime_error("a bug"); };
    EXPECT_THAT(CallExplain(), FailsWith(grpc::INTERNAL, "a bug"));
    on_supports_ = nullptr;
    EXPECT_TRUE(CallExplain().ok());
  }
  ExpectServes(server_);
  EXPECT_TRUE(WaitUntil([&] { return server_.Metric("attention_open_calls") == 0; }));
}

TEST_F(DeviceFailureTest, MemoryThatIsOutWhileComputingIsTheAnswer) {
  on_run_ = [] { throw std::bad_alloc(); };
  EXPECT_THAT(CallAttend(), FailsWith(grpc::RESOURCE_EXHAUSTED, "out of memory"));
  on_run_ = nullptr;
  EXPECT_EQ(num_made_, 1) << "no fault of the device";
  ExpectServes(server_);
}

TEST_F(DeviceFailureTest, OtherCallsAreServedWhileTheDeviceIsSetUpAgain) {
  absl::Notification is_being_made, may_be_made;
  on_made_again_ = [&] {
    is_being_made.Notify();
    may_be_made.WaitForNotification();
  };
  faults_.run_status = absl::InternalError("broken");
  auto failing = std::async(std::launch::async, [this] { return CallAttend(); });
  ASSERT_TRUE(is_being_made.WaitForNotificationWithTimeout(absl::Seconds(20)));
  faults_.run_status = absl::OkStatus();
  EXPECT_TRUE(CallRaw(server_.channel(), "/grpc.health.v1.Health/Check", "").ok());
  EXPECT_TRUE(CallExplain().ok());
  may_be_made.Notify();
  EXPECT_THAT(failing.get(), FailsWith(grpc::INTERNAL, "broken"));
  EXPECT_EQ(num_made_, 2);
  ExpectServes(server_);
}

TEST_F(DeviceFailureTest, ADeviceWhoseMakerThrowsIsTriedAgain) {
  on_made_again_ = [] { throw std::bad_alloc(); };
  faults_.run_status = absl::InternalError("broken");
  EXPECT_THAT(CallAttend(), FailsWith(grpc::INTERNAL, "broken"));
  faults_.run_status = absl::OkStatus();
  EXPECT_THAT(CallAttend(), FailsWith(grpc::UNAVAILABLE, "out of memory"));
  on_made_again_ = nullptr;
  EXPECT_TRUE(WaitUntil([&] { return CallAttend().ok(); }));
}

}  // namespace
}  // namespace attention::testing
