// Tensors in memory that client and server share.
#include "tests/support/shared_memory.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "tests/support/session_driver.h"
#include "tests/support/wire_tensor.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::size_t kMegabyte = std::size_t{1} << 20;

std::string SocketPath(const std::string& name) {
  return ::testing::TempDir() + "attention-lane-" + name + "-" + std::to_string(getpid());
}

ConfigChange Sharing(const std::string& name, const ConfigChange& change = nullptr) {
  return [name, change](server::ServerConfig& config) {
    config.shared_memory_listen = "unix:" + SocketPath(name);
    if (change) change(config);
  };
}

// One server for the tests that need no other.
TestServer& SharingServer() {
  static TestServer server(Sharing("shared"));
  return server;
}

class SharedMemoryTest : public ::testing::Test {
 protected:
  // Registers and returns the region's id.
  std::string MustRegister(const std::string& tenant = "") {
    const v1::LaneResponse response = lane_->Register(memory_, tenant);
    EXPECT_TRUE(response.has_register_()) << response.ShortDebugString();
    return response.register_().region_id();
  }

  TestServer& server_ = SharingServer();
  std::unique_ptr<LaneConnection> lane_ = std::make_unique<LaneConnection>(SocketPath("shared"));
  SharedMemory memory_{4 * kMegabyte};
};

// The request with q, k and v in the memory one behind the other, and the output to its last half.
v1::AttendRequest Shared(v1::AttendRequest request, const SharedMemory& memory,
                         const std::string& region_id, std::size_t misalignment = 0) {
  std::size_t offset = misalignment;
  for (v1::Tensor* tensor : {request.mutable_q(), request.mutable_k(), request.mutable_v()}) {
    const std::size_t bytes = tensor->data().size();
    MoveToSharedMemory(memory, region_id, offset, tensor);
    offset += (bytes + 63) / 64 * 64;
  }
  request.mutable_output_to()->set_region_id(region_id);
  request.mutable_output_to()->set_offset(static_cast<std::int64_t>(memory.size() / 2));
  return request;
}

// The output where it was asked for, as if it had travelled.
v1::AttendResponse Collected(v1::AttendResponse response, const SharedMemory& memory) {
  v1::Tensor* output = response.mutable_output();
  EXPECT_TRUE(output->has_shared_memory());
  EXPECT_EQ(output->data().size(), 0u);
  std::size_t bytes = output->dtype() == v1::DTYPE_FLOAT32 ? 4 : 2;
  for (const std::int64_t dimension : output->shape()) bytes *= dimension;
  output->set_data(memory.data() + output->shared_memory().offset(), bytes);
  output->clear_shared_memory();
  return response;
}

TEST_F(SharedMemoryTest, TheAnswerIsTheSameToTheBitAndNothingIsCopied) {
  const std::string id = MustRegister();
  for (const v1::DType dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT16}) {
    for (const std::size_t misalignment : {0, 2, 17}) {
      const v1::AttendRequest request =
          MakeAttendRequest({.dtype = dtype, .q_lens = {100, 3}, .kv_lens = {120, 30}});
      const v1::AttendResponse expected = MustAttend(server_, request);
      v1::AttendResponse response;
      const grpc::Status status =
          Attend(server_, Shared(request, memory_, id, misalignment), &response);
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(response.timing().copied_bytes(), 0);
      EXPECT_TRUE(SameAnswer(Collected(response, memory_), expected));
    }
  }
}

TEST_F(SharedMemoryTest, StepsTakeTheirRowsFromItAndAnswerIntoIt) {
  const std::string id = MustRegister();
  const v1::AttendRequest prompt = MakePrompt(40);
  const v1::AttendResponse expected = MustAttend(server_, prompt);
  const v1::SessionHandle handle = MustCreate(server_).handle();
  v1::SessionStep step = MakeStep(prompt, handle, 0, 40);
  MoveToSharedMemory(memory_, id, 0, step.mutable_q());
  MoveToSharedMemory(memory_, id, kMegabyte, step.mutable_k());
  MoveToSharedMemory(memory_, id, 2 * kMegabyte, step.mutable_v());
  step.mutable_output_to()->set_region_id(id);
  step.mutable_output_to()->set_offset(3 * kMegabyte);
  EXPECT_TRUE(SameAnswer(Collected(AsResponse(MustStep(server_, step)), memory_), expected));
}

TEST_F(SharedMemoryTest, TheServerSaysWhereItsSocketIs) {
  v1::GetServerInfoResponse response;
  ASSERT_TRUE(server_.info().GetServerInfo(NewContext().get(), {}, &response).ok());
  EXPECT_EQ(response.shared_memory_socket(), SocketPath("shared"));
}

struct BadPlace {
  const char* name;
  std::function<void(v1::AttendRequest&)> spoil;
  grpc::StatusCode code;
  const char* message;
};

TEST_F(SharedMemoryTest, APlaceThatIsNotInTheRegionIsNamed) {
  const std::string id = MustRegister();
  const std::string others = MustRegister("somebody-else");
  const BadPlace cases[] = {
      {"Behind", [](auto& r) { r.mutable_k()->mutable_shared_memory()->set_offset(4 * kMegabyte); },
       grpc::INVALID_ARGUMENT,
       "k.shared_memory is 2560 bytes at offset 4194304, expected them within"},
      {"Negative", [](auto& r) { r.mutable_v()->mutable_shared_memory()->set_offset(-1); },
       grpc::INVALID_ARGUMENT, "v.shared_memory is 2560 bytes at offset -1"},
      {"Overflow", [](auto& r) { r.mutable_q()->mutable_shared_memory()->set_offset(INT64_MAX); },
       grpc::INVALID_ARGUMENT, "at offset 9223372036854775807"},
      {"Unknown", [](auto& r) { r.mutable_q()->mutable_shared_memory()->set_region_id("?"); },
       grpc::NOT_FOUND, "q.shared_memory.region_id is '?'"},
      {"Foreign", [&](auto& r) { r.mutable_q()->mutable_shared_memory()->set_region_id(others); },
       grpc::NOT_FOUND, "q.shared_memory.region_id is"},
      {"Both", [](auto& r) { r.mutable_q()->set_data("x"); }, grpc::INVALID_ARGUMENT,
       "q.data has 1 bytes, expected none with q.shared_memory"},
      {"Output", [](auto& r) { r.mutable_output_to()->set_offset(4 * kMegabyte - 1); },
       grpc::INVALID_ARGUMENT, "output_to is"},
      {"OutputUnknown", [](auto& r) { r.mutable_output_to()->clear_region_id(); }, grpc::NOT_FOUND,
       "output_to.region_id is ''"},
  };
  const v1::AttendRequest good = Shared(MakeAttendRequest({.num_q_heads = 4,
                                                           .num_kv_heads = 2,
                                                           .head_dim_qk = 32,
                                                           .head_dim_v = 32,
                                                           .q_lens = {10},
                                                           .kv_lens = {10}}),
                                        memory_, id);
  for (const BadPlace& bad : cases) {
    SCOPED_TRACE(bad.name);
    v1::AttendRequest request = good;
    bad.spoil(request);
    v1::AttendResponse response;
    EXPECT_THAT(Attend(server_, request, &response), FailsWith(bad.code, bad.message));
    EXPECT_TRUE(Attend(server_, good, &response).ok());
  }
}

TEST_F(SharedMemoryTest, TheConnectionIsTheLease) {
  const std::string id = MustRegister();
  const v1::AttendRequest request = Shared(MakeAttendRequest({}), memory_, id);
  v1::AttendResponse response;
  EXPECT_TRUE(Attend(server_, request, &response).ok());
  lane_.reset();
  EXPECT_TRUE(WaitUntil([&] { return server_.Metric("attention_shared_memory_regions") == 0; }));
  EXPECT_THAT(Attend(server_, request, &response),
              FailsBecause(grpc::NOT_FOUND, "REGION_NOT_FOUND"));
  ExpectServes(server_);
}

TEST_F(SharedMemoryTest, ARegionMayBeGivenBackBefore) {
  const std::string first = MustRegister();
  const std::string second = MustRegister();
  EXPECT_TRUE(lane_->Release(first).has_release());
  EXPECT_THAT(lane_->Release(first).error().message(),
              HasSubstr("expected one of this connection"));
  v1::AttendResponse response;
  EXPECT_THAT(Attend(server_, Shared(MakeAttendRequest({}), memory_, first), &response),
              FailsBecause(grpc::NOT_FOUND, "REGION_NOT_FOUND"));
  EXPECT_TRUE(Attend(server_, Shared(MakeAttendRequest({}), memory_, second), &response).ok());
}

TEST_F(SharedMemoryTest, PacketsThatAreNoRequestAreRefusedAndTheLaneGoesOn) {
  EXPECT_EQ(lane_->Call("\xff\xff", {}).error().code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(lane_->Call(v1::LaneRequest().SerializeAsString() + std::string("\x1a\x00", 2), {})
                  .error()
                  .message(),
              HasSubstr("request is missing"));
  EXPECT_THAT(lane_->Call(std::string(5000, 'x'), {}).error().message(), HasSubstr("malformed"));
  v1::LaneRequest request;
  request.mutable_register_();
  const std::string packet = request.SerializeAsString();
  EXPECT_THAT(lane_->Call(packet, {}).error().message(), HasSubstr("0 descriptors"));
  EXPECT_THAT(lane_->Call(packet, {memory_.fd(), memory_.fd()}).error().message(),
              HasSubstr("2 descriptors"));
  EXPECT_THAT(lane_->Call(packet, std::vector<int>(20, memory_.fd())).error().message(),
              HasSubstr("malformed"));
  EXPECT_THAT(lane_->Call(packet, {STDERR_FILENO}).error().message(), HasSubstr("expected"));
  MustRegister();
}

TEST_F(SharedMemoryTest, MemoryThatMayShrinkIsRefusedAndSealedMemoryCannot) {
  const SharedMemory unsealed(kMegabyte, /*is_sealed=*/false);
  EXPECT_THAT(lane_->Register(unsealed).error().message(), HasSubstr("F_SEAL_SHRINK"));
  const std::string id = MustRegister();
  EXPECT_NE(ftruncate(memory_.fd(), 4096), 0) << "the seal holds";
  EXPECT_EQ(ftruncate(memory_.fd(), 8 * kMegabyte), 0) << "growing is nobody's harm";
  EXPECT_EQ(fallocate(memory_.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kMegabyte), 0);
  v1::AttendResponse response;
  EXPECT_TRUE(Attend(server_, Shared(MakeAttendRequest({}), memory_, id), &response).ok());
}

TEST_F(SharedMemoryTest, AClientThatScribblesSpoilsOnlyItsOwnAnswers) {
  const std::string id = MustRegister();
  const v1::AttendRequest innocent = MakeAttendRequest({.q_lens = {64}, .kv_lens = {64}});
  const v1::AttendResponse expected = MustAttend(server_, innocent);
  std::atomic<bool> is_done{false};
  std::thread scribbler([&] {
    for (std::uint32_t value = 1; !is_done.load(); value = value * 1664525 + 1013904223) {
      for (std::size_t i = 0; i + 4 <= memory_.size(); i += 256) {
        std::memcpy(memory_.data() + i, &value, 4);  // NaN and infinity among them
      }
    }
  });
  const v1::AttendRequest shared =
      Shared(MakeAttendRequest({.q_lens = {256}, .kv_lens = {256}}), memory_, id);
  for (int i = 0; i < 20; ++i) {
    v1::AttendResponse spoiled;
    EXPECT_TRUE(Attend(server_, shared, &spoiled).ok());
    v1::AttendResponse response;
    ASSERT_TRUE(Attend(server_, innocent, &response).ok());
    EXPECT_TRUE(SameAnswer(response, expected));
  }
  is_done.store(true);
  scribbler.join();
}

TEST(SharedMemoryLifetimeTest, WhatIsQueuedOutlivesTheClientsLease) {
  TestServer own(Sharing("queued", SlowBackend()));
  SharedMemory memory(kMegabyte);
  auto lane = std::make_unique<LaneConnection>(SocketPath("queued"));
  const std::string id = lane->Register(memory).register_().region_id();
  const v1::AttendRequest request = MakeAttendRequest({});
  const v1::AttendResponse expected = MustAttend(own, request);
  BusyWorker busy(own);
  std::future<v1::AttendResponse> call = std::async(std::launch::async, [&] {
    v1::AttendResponse response;
    const grpc::Status status = Attend(own, Shared(request, memory, id), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  });
  ASSERT_TRUE(WaitUntil([&] { return own.Metric("attention_queued_requests") == 1; }));
  lane.reset();
  ASSERT_TRUE(WaitUntil([&] { return own.Metric("attention_shared_memory_regions") == 0; }));
  busy.Finish();
  EXPECT_TRUE(SameAnswer(Collected(call.get(), memory), expected));
}

TEST(SharedMemoryLifetimeTest, TenantsHaveLimits) {
  TestServer own(Sharing("limits", [](server::ServerConfig& config) {
    config.max_shared_bytes_per_tenant = 2 * kMegabyte;
    config.max_shared_regions_per_tenant = 3;
  }));
  LaneConnection lane(SocketPath("limits"));
  const SharedMemory large(2 * kMegabyte);
  const SharedMemory small(4096);
  EXPECT_TRUE(lane.Register(large).has_register_());
  EXPECT_EQ(lane.Register(small).error().reason(), "QUOTA_EXCEEDED");
  EXPECT_EQ(lane.Register(small).error().code(), grpc::RESOURCE_EXHAUSTED);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(lane.Register(small, "b").has_register_());
  EXPECT_EQ(lane.Register(small, "b").error().reason(), "QUOTA_EXCEEDED");
}

TEST(SharedMemoryLifetimeTest, WithoutALaneAPlaceIsRefused) {
  TestServer own;
  const SharedMemory memory(kMegabyte);
  v1::AttendResponse response;
  EXPECT_THAT(Attend(own, Shared(MakeAttendRequest({}), memory, "id"), &response),
              FailsWith(grpc::FAILED_PRECONDITION, "q.shared_memory is in shared memory, which"));
  ExpectServes(own);
}

TEST(SharedMemoryLifetimeTest, ASocketInUseIsNotTakenAndAStaleOneIs) {
  const std::string path = SocketPath("stale");
  {
    TestServer first(Sharing("stale"));
    server::ServerConfig config = TestConfig();
    config.shared_memory_listen = "unix:" + path;
    const auto second = server::ServerApp::Start(config);
    EXPECT_THAT(std::string(second.status().message()),
                HasSubstr("shared-memory-listen: cannot bind unix:" + path));
    LaneConnection lane(path);
    EXPECT_TRUE(lane.Register(SharedMemory(4096)).has_register_());
  }
  std::FILE* stale = std::fopen(path.c_str(), "w");
  std::fclose(stale);
  TestServer again(Sharing("stale"));
  LaneConnection lane(path);
  EXPECT_TRUE(lane.Register(SharedMemory(4096)).has_register_());
}

}  // namespace
}  // namespace attention::testing
