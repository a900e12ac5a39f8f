// Trees as /proc and /sys show them in containers and on machines.
#include "server/base/machine_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace attention::server {
namespace {

using ::testing::EndsWith;

constexpr std::int64_t kGib = std::int64_t{1} << 30;

class MachineLimitsTest : public ::testing::Test {
 protected:
  MachineLimitsTest() : root_(::testing::TempDir() + "limits-XXXXXX") {
    if (mkdtemp(root_.data()) == nullptr) ADD_FAILURE() << "no folder " << root_;
  }
  ~MachineLimitsTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text << "\n";
  }
  void MountV2(const std::string& root = "/") {
    Write("proc/self/mountinfo",
          "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
          "30 22 0:26 " +
              root + " /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw");
  }
  MachineLimits Read() { return ReadMachineLimits(root_); }

  std::string root_;
};

TEST_F(MachineLimitsTest, WithoutControlGroupsTheMachineIsTheLimit) {
  const MachineLimits limits = Read();
  EXPECT_GT(limits.memory_bytes, 64 << 20);
  EXPECT_EQ(limits.memory_source, "the machine's memory");
  EXPECT_FALSE(limits.cpus);
  EXPECT_EQ(UsableCpus(limits, 8), 8);
}

TEST_F(MachineLimitsTest, AContainerOfVersion2SeesItsGroupAsTheTop) {
  MountV2();
  Write("proc/self/cgroup", "0::/");
  Write("sys/fs/cgroup/memory.max", std::to_string(kGib));
  Write("sys/fs/cgroup/cpu.max", "150000 100000");
  const MachineLimits limits = Read();
  EXPECT_EQ(limits.memory_bytes, kGib);
  EXPECT_THAT(limits.memory_source, EndsWith("/sys/fs/cgroup/memory.max"));
  EXPECT_EQ(limits.cpus, 1.5);
  EXPECT_THAT(limits.cpu_source, EndsWith("/sys/fs/cgroup/cpu.max"));
  EXPECT_EQ(UsableCpus(limits, 64), 2) << "rounded up";
  EXPECT_EQ(UsableCpus(limits, 1), 1);
}

TEST_F(MachineLimitsTest, TheLeastOfAGroupAndThoseItIsInHolds) {
  MountV2();
  Write("proc/self/cgroup", "0::/kubepods/pod/box");
  Write("sys/fs/cgroup/kubepods/pod/box/memory.max", "max");
  Write("sys/fs/cgroup/kubepods/pod/box/cpu.max", "400000 100000");
  Write("sys/fs/cgroup/kubepods/pod/memory.max", std::to_string(kGib));
  Write("sys/fs/cgroup/kubepods/pod/cpu.max", "max 100000");
  Write("sys/fs/cgroup/kubepods/memory.max", std::to_string(2 * kGib));
  Write("sys/fs/cgroup/kubepods/cpu.max", "300000 100000");
  const MachineLimits limits = Read();
  EXPECT_EQ(limits.memory_bytes, kGib);
  EXPECT_EQ(limits.cpus, 3.0);
}

TEST_F(MachineLimitsTest, TheThrottlingLimitCountsToo) {
  MountV2();
  Write("proc/self/cgroup", "0::/box");
  Write("sys/fs/cgroup/box/memory.max", std::to_string(2 * kGib));
  Write("sys/fs/cgroup/box/memory.high", std::to_string(kGib));
  EXPECT_EQ(Read().memory_bytes, kGib);
}

TEST_F(MachineLimitsTest, Version1HasAHierarchyForEachController) {
  Write("proc/self/mountinfo",
        "31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 22 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct");
  Write("proc/self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n1:name=systemd:/box");
  Write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", std::to_string(kGib));
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  Write("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "50000");
  Write("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000");
  Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  Write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
  const MachineLimits limits = Read();
  EXPECT_EQ(limits.memory_bytes, kGib);
  EXPECT_EQ(limits.cpus, 0.5);
  EXPECT_EQ(UsableCpus(limits, 4), 1);
}

TEST_F(MachineLimitsTest, InAHybridMachineBothVersionsAreRead) {
  Write("proc/self/mountinfo",
        "31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "33 22 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw");
  Write("proc/self/cgroup", "4:memory:/box\n0::/box");
  Write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", std::to_string(2 * kGib));
  Write("sys/fs/cgroup/unified/box/memory.max", std::to_string(kGib));
  EXPECT_EQ(Read().memory_bytes, kGib);
}

TEST_F(MachineLimitsTest, AContainerWithoutANamespaceSeesThePathOfTheHost) {
  MountV2("/docker/1234");
  Write("proc/self/cgroup", "0::/docker/1234");
  Write("sys/fs/cgroup/memory.max", std::to_string(kGib));
  EXPECT_EQ(Read().memory_bytes, kGib);
  Write("proc/self/cgroup", "0::/docker/1234/inner");
  Write("sys/fs/cgroup/inner/memory.max", std::to_string(kGib / 2));
  EXPECT_EQ(Read().memory_bytes, kGib / 2);
  // Moved out of the namespace it was started in: the top is all that can be seen.
  MountV2();
  Write("proc/self/cgroup", "0::/../elsewhere");
  EXPECT_EQ(Read().memory_bytes, kGib);
}

TEST_F(MachineLimitsTest, MoreThanTheMachineHasIsNoLimit) {
  MountV2();
  Write("proc/self/cgroup", "0::/");
  Write("sys/fs/cgroup/memory.max", std::to_string(kGib << 29));
  EXPECT_EQ(Read().memory_source, "the machine's memory");
}

TEST_F(MachineLimitsTest, NonsenseLimitsNothing) {
  MountV2();
  Write("proc/self/cgroup", "0::/\nnonsense\n::");
  Write("sys/fs/cgroup/memory.max", "many");
  Write("sys/fs/cgroup/cpu.max", "0 0");
  const MachineLimits limits = Read();
  EXPECT_EQ(limits.memory_source, "the machine's memory");
  EXPECT_FALSE(limits.cpus);
}

}  // namespace
}  // namespace attention::server
