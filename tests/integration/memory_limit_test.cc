// The server in a control group that allows it less memory than the machine has.
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/support/server_process.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kGib = std::int64_t{1} << 30;

bool Write(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  return static_cast<bool>(file.flush());
}

// A control group with a limit of memory, of whichever version can be had. Children of this process
// that are made meanwhile are in it, too.
class MemoryGroup {
 public:
  explicit MemoryGroup(std::int64_t bytes) {
    const std::string name = absl::StrCat("attention-test-", getpid());
    const std::pair<const char*, const char*> places[] = {
        {"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}};
    for (const auto& [parent, limit] : places) {
      const std::string folder = absl::StrCat(parent, "/", name);
      std::error_code error;
      if (!std::filesystem::exists(absl::StrCat(parent, "/cgroup.procs")) ||
          !std::filesystem::create_directory(folder, error)) {
        continue;
      }
      folder_ = folder;
      parent_ = Home(parent);
      if (Write(absl::StrCat(folder, "/", limit), std::to_string(bytes)) && Enter(folder)) return;
      Leave();
    }
  }
  ~MemoryGroup() { Leave(); }
  MemoryGroup(const MemoryGroup&) = delete;
  MemoryGroup& operator=(const MemoryGroup&) = delete;

  bool is_there() const { return !folder_.empty(); }
  // This process is in it no longer; what it has started is.
  void StepOut() { Enter(parent_); }
  std::int64_t most_used() const {
    std::int64_t bytes = 0;
    for (const char* file : {"memory.max_usage_in_bytes", "memory.peak"}) {
      if (std::ifstream(absl::StrCat(folder_, "/", file)) >> bytes) break;
    }
    return bytes;
  }

 private:
  // The group that this process is in at first, below the mount point.
  static std::string Home(const std::string& mount_point) {
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
      const bool is_memory = line.find(":memory:") != std::string::npos;
      if (is_memory != (mount_point == "/sys/fs/cgroup/memory")) continue;
      if (!is_memory && line.rfind("0::", 0) != 0) continue;
      return mount_point + line.substr(line.find(':', line.find(':') + 1) + 1);
    }
    return mount_point;
  }
  static bool Enter(const std::string& folder) {
    return Write(folder + "/cgroup.procs", std::to_string(getpid()));
  }
  void Leave() {
    if (folder_.empty()) return;
    Enter(parent_);
    WaitUntil([this] {
      std::error_code error;
      return std::filesystem::remove(folder_, error) || !std::filesystem::exists(folder_);
    });
    folder_.clear();
  }

  std::string folder_;
  std::string parent_;
};

TEST(MemoryLimitTest, AServerInAGroupOfOneGibPlansForThat) {
  MemoryGroup group(kGib);
  if (!group.is_there()) GTEST_SKIP() << "no control group can be made here";
  ServerProcess process({"--kv-capacity-bytes=0"});
  ServerClient& server = process.client();
  group.StepOut();
  EXPECT_THAT(process.Log(), HasSubstr("memory: 1024 MiB ("));
  EXPECT_LE(server.Metric("attention_kv_capacity_bytes"), kGib / 4);
  EXPECT_GE(server.Metric("attention_kv_capacity_bytes"), kGib / 5);
  // All the memory for KV pages in use at once: what else it takes fits beside it.
  const v1::AttendRequest prompt = MakePrompt(4096);
  for (double used = 0; used < 0.7 * kGib / 4;) {
    const v1::SessionHandle handle = MustCreate(server).handle();
    MustStep(server, MakeAppend(prompt, handle, 0, 4096));
    used = server.Metric("attention_kv_used_bytes");
    ASSERT_GT(used, 0);
  }
  ExpectServes(server);
  EXPECT_LT(group.most_used(), kGib);
  process.Signal(SIGTERM);
  EXPECT_EQ(process.WaitForExit(), 0);
}

TEST(MemoryLimitTest, MoreThanTheGroupAllowsIsRefusedAtTheStart) {
  MemoryGroup group(kGib);
  if (!group.is_there()) GTEST_SKIP() << "no control group can be made here";
  ServerProcess process({"--kv-capacity-bytes=1073741824", "--max-queued-bytes=104857600"});
  group.StepOut();
  EXPECT_EQ(process.WaitForExit(), 1);
  EXPECT_THAT(process.Log(), HasSubstr("kv-capacity-bytes (1073741824 bytes), max-queued-bytes "
                                       "(104857600 bytes)"));
}

}  // namespace
}  // namespace attention::testing
