// A client that dies, or abuses its memory, while its tensors are in flight.
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "tests/support/shared_memory.h"
#include "tests/support/sharing_client.h"

extern char** environ;

namespace attention::testing {
namespace {

constexpr char kChildTarget[] = "ATTENTION_TEST_CHILD_TARGET";

// Not a test: the client that others kill, in a process of its own.
TEST(SharedMemoryChild, SendsUntilItIsKilled) {
  const char* target = std::getenv(kChildTarget);
  if (target == nullptr) GTEST_SKIP() << "started by AClientThatIsKilled";
  const auto client = NewClient(target);
  const v1::AttendRequest wire = LargeRequest();
  std::vector<client::Future<client::AttendResult>> calls(8);
  for (;;) {
    for (auto& call : calls) {
      if (call.valid()) {
        ASSERT_TRUE(call.get().ok());
      }
      call = client->AttendFuture(Sdk(wire));
    }
  }
}

class Child {
 public:
  explicit Child(const std::string& target) {
    setenv(kChildTarget, target.c_str(), 1);
    char program[] = "/proc/self/exe";
    char filter[] = "--gtest_filter=SharedMemoryChild.*";
    char* const argv[] = {program, filter, nullptr};
    EXPECT_EQ(posix_spawn(&pid_, program, nullptr, nullptr, argv, environ), 0);
    unsetenv(kChildTarget);
  }
  ~Child() { Kill(); }
  void Kill() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
};

TEST(SharedMemoryFaultTest, AClientThatIsKilledTakesNobodyWithIt) {
  TestServer server(Sharing("killed"));
  const v1::AttendRequest wire = LargeRequest(3);
  const auto neighbour = NewClient(server.address());
  const v1::AttendResponse expected = MustAttend(server, wire);
  for (int i = 0; i < 3; ++i) {
    const double answered = server.Metric("attention_output_bytes_total");
    Child child(server.address());
    // Its tensors are in flight: it has been answered more than the neighbour asked for.
    ASSERT_TRUE(WaitUntil([&] {
      EXPECT_THAT(neighbour->Attend(Sdk(wire)), HasBitsOf(expected));
      return server.Metric("attention_shared_memory_regions") == 2 &&
             server.Metric("attention_output_bytes_total") > answered + 16 * kMegabyte;
    }));
    child.Kill();
    EXPECT_TRUE(WaitUntil([&] {
      EXPECT_THAT(neighbour->Attend(Sdk(wire)), HasBitsOf(expected));
      return server.Metric("attention_shared_memory_regions") == 1;
    }));
  }
  EXPECT_GT(neighbour->shared_memory_usage().num_requests, 0);
}

// A client's abuse of memory while the server reads and writes it.
struct Abuse {
  const char* name;
  std::function<void(const SharedMemory&)> abuse;
};

TEST(SharedMemoryFaultTest, MemoryThatIsAbusedWhileInUseSpoilsNobodyElsesAnswer) {
  TestServer server(Sharing("abused"));
  const v1::AttendRequest wire = LargeRequest(4);
  const auto neighbour = NewClient(server.address());
  const v1::AttendResponse expected = MustAttend(server, wire);
  constexpr std::size_t kBytes = 8 * kMegabyte;
  const Abuse abuses[] = {
      {"Truncated", [](const SharedMemory& memory) { EXPECT_NE(ftruncate(memory.fd(), 4096), 0); }},
      {"Resized",
       [](const SharedMemory& memory) { EXPECT_NE(ftruncate(memory.fd(), 2 * kBytes), 0); }},
      {"PagesTaken",
       [](const SharedMemory& memory) {
         EXPECT_EQ(fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kBytes),
                   0);
       }},
      {"Unmapped",
       [](const SharedMemory& memory) {
         EXPECT_EQ(
             mmap(memory.data(), kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
             memory.data());
       }},
      {"Scribbled",
       [](const SharedMemory& memory) {
         for (std::size_t i = 0; i + 4 <= kBytes; i += 64) {
           const std::uint32_t value = 0x7f800000u + static_cast<std::uint32_t>(i);  // NaNs
           std::memcpy(memory.data() + i, &value, 4);
         }
       }},
  };
  for (const Abuse& abuse : abuses) {
    SCOPED_TRACE(abuse.name);
    ChannelConnection channel(PathOf("abused-channel"));
    const auto memory = channel.MustCreate(kBytes);
    v1::AttendRequest own = LargeRequest();
    std::size_t offset = 0;
    for (v1::Tensor* tensor : {own.mutable_q(), own.mutable_k(), own.mutable_v()}) {
      const std::size_t bytes = tensor->data().size();
      MoveToSharedMemory(*memory, offset, tensor);
      offset += bytes;
    }
    own.mutable_output_to()->set_region_id(memory->region_id());
    own.mutable_output_to()->set_offset(static_cast<std::int64_t>(kBytes / 2));
    std::atomic<bool> is_done{false};
    std::thread abused([&] {
      while (!is_done.load()) {
        v1::AttendResponse response;
        EXPECT_TRUE(Attend(server, own, &response).ok());
      }
    });
    for (int i = 0; i < 10; ++i) {
      abuse.abuse(*memory);
      EXPECT_THAT(neighbour->Attend(Sdk(wire)), HasBitsOf(expected));
    }
    is_done.store(true);
    abused.join();
  }
  ExpectServes(server);
}

}  // namespace
}  // namespace attention::testing
