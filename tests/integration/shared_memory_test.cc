// Tensors in memory that client and server share.
#include "tests/support/shared_memory.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/support/session_driver.h"
#include "tests/support/sharing_client.h"
#include "tests/support/wire_tensor.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

// The socket of a server that is Sharing(name).
std::string SocketPath(const std::string& name) { return PathOf(name + "-channel"); }

// One server for the tests that need no other.
TestServer& SharingServer() {
  static TestServer server(Sharing("shared", [](server::ServerConfig& config) {
    config.max_shared_bytes_per_connection = std::int64_t{1} << 30;
  }));
  return server;
}

class SharedMemoryTest : public ::testing::Test {
 protected:
  TestServer& server_ = SharingServer();
  std::unique_ptr<ChannelConnection> channel_ =
      std::make_unique<ChannelConnection>(SocketPath("shared"));
  std::unique_ptr<SharedMemory> memory_ = channel_->MustCreate(4 * kMegabyte);
};

// The request with q, k and v in the memory one behind the other, and the output to its last half.
v1::AttendRequest Shared(v1::AttendRequest request, const SharedMemory& memory,
                         std::size_t misalignment = 0) {
  std::size_t offset = misalignment;
  for (v1::Tensor* tensor : {request.mutable_q(), request.mutable_k(), request.mutable_v()}) {
    const std::size_t bytes = tensor->data().size();
    MoveToSharedMemory(memory, offset, tensor);
    offset += (bytes + 63) / 64 * 64;
  }
  request.mutable_output_to()->set_region_id(memory.region_id());
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
  for (const v1::DType dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT16}) {
    for (const std::size_t misalignment : {0, 2, 17}) {
      const v1::AttendRequest request =
          MakeAttendRequest({.dtype = dtype, .q_lens = {100, 3}, .kv_lens = {120, 30}});
      const v1::AttendResponse expected = MustAttend(server_, request);
      v1::AttendResponse response;
      const grpc::Status status =
          Attend(server_, Shared(request, *memory_, misalignment), &response);
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(response.timing().copied_bytes(), 0);
      EXPECT_TRUE(SameAnswer(Collected(response, *memory_), expected));
    }
  }
}

TEST_F(SharedMemoryTest, StepsTakeTheirRowsFromItAndAnswerIntoIt) {
  const v1::AttendRequest prompt = MakePrompt(40);
  const v1::AttendResponse expected = MustAttend(server_, prompt);
  const v1::SessionHandle handle = MustCreate(server_).handle();
  v1::SessionStep step = MakeStep(prompt, handle, 0, 40);
  MoveToSharedMemory(*memory_, 0, step.mutable_q());
  MoveToSharedMemory(*memory_, kMegabyte, step.mutable_k());
  MoveToSharedMemory(*memory_, 2 * kMegabyte, step.mutable_v());
  step.mutable_output_to()->set_region_id(memory_->region_id());
  step.mutable_output_to()->set_offset(3 * kMegabyte);
  EXPECT_TRUE(SameAnswer(Collected(AsResponse(MustStep(server_, step)), *memory_), expected));
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

TEST_F(SharedMemoryTest, AReferenceOutsideTheRegionIsNamed) {
  const std::string others = channel_->MustCreate(kMegabyte, "somebody-else")->region_id();
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
                                        *memory_);
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
  const v1::AttendRequest request = Shared(MakeAttendRequest({}), *memory_);
  v1::AttendResponse response;
  EXPECT_TRUE(Attend(server_, request, &response).ok());
  channel_.reset();
  EXPECT_TRUE(WaitUntil([&] { return server_.Metric("attention_shared_memory_regions") == 0; }));
  EXPECT_THAT(Attend(server_, request, &response),
              FailsBecause(grpc::NOT_FOUND, "REGION_NOT_FOUND"));
  ExpectServes(server_);
}

TEST_F(SharedMemoryTest, ARegionMayBeGivenBackBefore) {
  const auto other = channel_->MustCreate(4 * kMegabyte);
  EXPECT_TRUE(channel_->Release(memory_->region_id()).has_release());
  EXPECT_THAT(channel_->Release(memory_->region_id()).error().message(),
              HasSubstr("expected one of this connection"));
  v1::AttendResponse response;
  EXPECT_THAT(Attend(server_, Shared(MakeAttendRequest({}), *memory_), &response),
              FailsBecause(grpc::NOT_FOUND, "REGION_NOT_FOUND"));
  EXPECT_TRUE(Attend(server_, Shared(MakeAttendRequest({}), *other), &response).ok());
}

std::int64_t BytesInUse(const SharedMemory& memory) {
  struct stat file {};
  EXPECT_EQ(fstat(memory.fd(), &file), 0);
  return std::int64_t{512} * file.st_blocks;
}

TEST_F(SharedMemoryTest, AReleasedRegionIsFreedThoughItsClientHoldsIt) {
  EXPECT_EQ(BytesInUse(*memory_), 4 * kMegabyte) << "all its pages are there from the start";
  memory_->data()[5] = 1;
  EXPECT_TRUE(channel_->Release(memory_->region_id()).has_release());
  EXPECT_TRUE(WaitUntil([&] { return BytesInUse(*memory_) == 0; }));
  EXPECT_TRUE(WaitUntil([&] { return server_.Metric("attention_shared_memory_bytes") == 0; }));
  EXPECT_EQ(memory_->data()[5], 0);
}

TEST_F(SharedMemoryTest, PacketsThatAreNoRequestAreRefusedAndTheChannelGoesOn) {
  EXPECT_EQ(channel_->Call("\xff\xff").error().code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(
      channel_->Call(v1::SharedMemoryRequest().SerializeAsString() + std::string("\x1a\x00", 2))
          .error()
          .message(),
      HasSubstr("request is missing"));
  EXPECT_THAT(channel_->Call(std::string(20000, 'x')).error().message(), HasSubstr("malformed"));
  for (const std::int64_t bytes :
       {std::int64_t{-1}, std::int64_t{0}, std::int64_t{4095}, (std::int64_t{1} << 30) + 1}) {
    const v1::SharedMemoryResponse response = channel_->Create(static_cast<std::size_t>(bytes));
    EXPECT_EQ(response.error().code(), grpc::INVALID_ARGUMENT);
    EXPECT_EQ(response.error().message(),
              absl::StrCat("size_bytes is ", bytes, ", expected 4096 to 1073741824"));
  }
  channel_->MustCreate(kMegabyte);
}

TEST_F(SharedMemoryTest, DescriptorsThatNobodyAskedForAreClosed) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  v1::SharedMemoryRequest request;
  request.mutable_create()->set_size_bytes(kMegabyte);
  EXPECT_TRUE(
      channel_->Call(request.SerializeAsString(), {ends[1], ends[1], ends[1]}).has_create());
  close(ends[1]);
  char byte = 0;
  EXPECT_EQ(read(ends[0], &byte, 1), 0) << "nobody has the pipe's other end open";
  close(ends[0]);
}

TEST_F(SharedMemoryTest, TheMemoryIsSealed) {
  EXPECT_NE(ftruncate(memory_->fd(), 4096), 0);
  EXPECT_NE(ftruncate(memory_->fd(), 8 * kMegabyte), 0);
  EXPECT_NE(fcntl(memory_->fd(), F_ADD_SEALS, F_SEAL_WRITE), 0) << "nor can that be changed";
  EXPECT_EQ(fallocate(memory_->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kMegabyte), 0);
  v1::AttendResponse response;
  EXPECT_TRUE(Attend(server_, Shared(MakeAttendRequest({}), *memory_), &response).ok());
}

TEST_F(SharedMemoryTest, AClientThatScribblesSpoilsOnlyItsOwnAnswers) {
  const v1::AttendRequest innocent = MakeAttendRequest({.q_lens = {64}, .kv_lens = {64}});
  const v1::AttendResponse expected = MustAttend(server_, innocent);
  std::atomic<bool> is_done{false};
  std::thread scribbler([&] {
    for (std::uint32_t value = 1; !is_done.load(); value = value * 1664525 + 1013904223) {
      for (std::size_t i = 0; i + 4 <= memory_->size(); i += 256) {
        std::memcpy(memory_->data() + i, &value, 4);  // NaN and infinity among them
      }
    }
  });
  const v1::AttendRequest shared =
      Shared(MakeAttendRequest({.q_lens = {256}, .kv_lens = {256}}), *memory_);
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
  auto channel = std::make_unique<ChannelConnection>(SocketPath("queued"));
  const auto memory = channel->MustCreate(kMegabyte);
  const v1::AttendRequest request = MakeAttendRequest({});
  const v1::AttendResponse expected = MustAttend(own, request);
  BusyWorker busy(own);
  std::future<v1::AttendResponse> call = std::async(std::launch::async, [&] {
    // Its inputs lie in the memory; its output, which would be freed with it, travels.
    v1::AttendRequest shared = Shared(request, *memory);
    shared.clear_output_to();
    v1::AttendResponse response;
    const grpc::Status status = Attend(own, shared, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  });
  ASSERT_TRUE(WaitUntil([&] { return own.Metric("attention_queued_requests") == 1; }));
  channel.reset();
  ASSERT_TRUE(WaitUntil([&] {
    // A call that still finds the region would wait behind the busy worker.
    const auto context = NewContext();
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
    v1::AttendResponse response;
    const v1::AttendRequest shared = Shared(request, *memory);
    return ReasonOf(own.attention().Attend(context.get(), shared, &response)) == "REGION_NOT_FOUND";
  }));
  EXPECT_EQ(own.Metric("attention_shared_memory_regions"), 1) << "it counts until it is freed";
  busy.Finish();
  EXPECT_TRUE(SameAnswer(call.get(), expected));
  EXPECT_TRUE(WaitUntil([&] { return own.Metric("attention_shared_memory_regions") == 0; }));
}

TEST(SharedMemoryLifetimeTest, ClientsHaveLimitsWhateverTenantsTheyClaim) {
  TestServer own(Sharing("limits", [](server::ServerConfig& config) {
    config.max_shared_bytes_per_connection = 2 * kMegabyte;
    config.max_shared_bytes_per_user = 3 * kMegabyte;
    config.max_shared_regions_per_connection = 3;
    config.max_shared_connections_per_user = 2;
  }));
  ChannelConnection channel(SocketPath("limits"));
  channel.MustCreate(2 * kMegabyte);
  v1::SharedMemoryError error = channel.Create(4096, "another").error();
  EXPECT_EQ(error.reason(), "QUOTA_EXCEEDED");
  EXPECT_EQ(error.code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_EQ(error.message(),
            "the connection would have 2101248 bytes of shared memory, expected at most 2097152");
  ChannelConnection second(SocketPath("limits"));
  for (const char* tenant : {"a", "b", "c"}) second.MustCreate(4096, tenant);
  EXPECT_THAT(second.Create(4096, "d").error().message(),
              HasSubstr("the connection would have 4 regions"));
  ChannelConnection third(SocketPath("limits"));
  EXPECT_THAT(third.Receive().error().message(),
              HasSubstr("the user has 2 connections for shared memory, expected fewer than 2"));
}

TEST(SharedMemoryLifetimeTest, AUsersConnectionsHaveALimitTogether) {
  TestServer own(Sharing("users", [](server::ServerConfig& config) {
    config.max_shared_bytes_per_user = 3 * kMegabyte;
  }));
  ChannelConnection first(SocketPath("users")), second(SocketPath("users"));
  const auto memory = first.MustCreate(2 * kMegabyte);
  EXPECT_THAT(second.Create(2 * kMegabyte).error().message(),
              HasSubstr("the user would have 4194304 bytes"));
  first.Release(memory->region_id());
  EXPECT_TRUE(WaitUntil([&] { return second.Create(2 * kMegabyte).has_create(); }));
}

// Takes descriptors of this process, which is the server's, until there are none.
class AllDescriptors {
 public:
  AllDescriptors() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &before_), 0);
    const int next = dup(STDERR_FILENO);
    rlimit few = before_;
    few.rlim_cur = static_cast<rlim_t>(next) + 8;
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (int fd = next; fd >= 0; fd = dup(STDERR_FILENO)) taken_.push_back(fd);
  }
  ~AllDescriptors() {
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before_), 0);
    for (const int fd : taken_) close(fd);
  }
  // Gives one back.
  void GiveBack() {
    close(taken_.back());
    taken_.pop_back();
  }

 private:
  rlimit before_{};
  std::vector<int> taken_;
};

absl::Duration ProcessorTime() {
  rusage usage{};
  EXPECT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
  return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
}

TEST(SharedMemoryLifetimeTest, WithoutDescriptorsTheServerRestsAndGoesOn) {
  TestServer own(Sharing("descriptors"));
  { ChannelConnection warm(SocketPath("descriptors")); }
  AllDescriptors all;
  all.GiveBack();  // for this end
  ChannelConnection waiting(SocketPath("descriptors"));
  const absl::Duration before = ProcessorTime();
  absl::SleepFor(absl::Milliseconds(300));  // what would be spent is what is tested
  EXPECT_LT(ProcessorTime() - before, absl::Milliseconds(150));
  for (int i = 0; i < 4; ++i) all.GiveBack();  // for its end, and the memory's two
  EXPECT_TRUE(waiting.Create(kMegabyte).has_create());
}

TEST(SharedMemoryLifetimeTest, WithoutALaneAPlaceIsRefused) {
  SharingServer();
  TestServer own;
  const auto memory = ChannelConnection(SocketPath("shared")).MustCreate(kMegabyte);
  v1::AttendResponse response;
  EXPECT_THAT(Attend(own, Shared(MakeAttendRequest({}), *memory), &response),
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
    ChannelConnection channel(path);
    channel.MustCreate(4096);
  }
  // As a process leaves it that ends without a word.
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int stale = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  ASSERT_EQ(bind(stale, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(stale);
  TestServer again(Sharing("stale"));
  ChannelConnection channel(path);
  channel.MustCreate(4096);
}

}  // namespace
}  // namespace attention::testing
