#include "kernels/base/cpu_topology.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kernels/base/cpu_affinity.h"

namespace attention {
namespace {

using Lists = std::vector<CpuList>;

TEST(CpuTopologyTest, ReadsListsAsTheKernelWritesThem) {
  EXPECT_EQ(ParseCpuList("0-3,8,10-11\n"), (CpuList{0, 1, 2, 3, 8, 10, 11}));
  EXPECT_EQ(ParseCpuList("7"), CpuList{7});
  EXPECT_EQ(ParseCpuList("\n"), CpuList{});  // a node of memory alone
}

TEST(CpuTopologyTest, WhatIsNoListIsEmpty) {
  for (const char* text : {"x", "1-", "3-1", "1,,2", "1;2", "-1", "99999999999", "0-100000"}) {
    EXPECT_EQ(ParseCpuList(text), CpuList{}) << text;
  }
}

class NumaNodesTest : public ::testing::Test {
 protected:
  ~NumaNodesTest() override { std::filesystem::remove_all(sysfs_); }
  void AddNode(const std::string& name, const std::string& cpus) {
    std::filesystem::create_directories(sysfs_ / name);
    std::ofstream(sysfs_ / name / "cpulist") << cpus << "\n";
  }

  const std::filesystem::path sysfs_ =
      std::filesystem::path(::testing::TempDir()) / "cpu_topology_test";
};

TEST_F(NumaNodesTest, ListsTheAvailableCpusOfEachNode) {
  const CpuList available = AvailableCpus();
  ASSERT_FALSE(available.empty());
  AddNode("node10", "8000-8100");
  AddNode("node2", "0-8191");
  AddNode("node3", "");
  AddNode("nodes", "0");
  EXPECT_EQ(NumaNodes(sysfs_.string()), Lists{available});
}

TEST_F(NumaNodesTest, WithoutAnAnswerAllCpusAreOneNode) {
  EXPECT_EQ(NumaNodes((sysfs_ / "missing").string()), Lists{AvailableCpus()});
}

TEST_F(NumaNodesTest, TheMachineItselfHasEveryCpuOnce) {
  CpuList all;
  for (const CpuList& node : NumaNodes()) all.insert(all.end(), node.begin(), node.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, AvailableCpus());
}

TEST(DivideCpusTest, AGroupForEachNode) {
  EXPECT_EQ(DivideCpus({{0, 1}, {2, 3}}, 2), (Lists{{0, 1}, {2, 3}}));
}

TEST(DivideCpusTest, MoreGroupsThanNodesCrossNone) {
  EXPECT_EQ(DivideCpus({{0, 1, 2, 3}, {4, 5}}, 3), (Lists{{0, 1}, {2, 3}, {4, 5}}));
  EXPECT_EQ(DivideCpus({{0, 1, 2}}, 2), (Lists{{0, 1}, {2}}));
  EXPECT_EQ(DivideCpus({{0, 1, 2}, {3}}, 4), (Lists{{0}, {1}, {2}, {3}}));
}

TEST(DivideCpusTest, FewerGroupsThanNodesTakeWholeNodes) {
  EXPECT_EQ(DivideCpus({{0, 1}, {2, 3}, {4, 5}, {6, 7}}, 2), (Lists{{0, 1, 2, 3}, {4, 5, 6, 7}}));
  EXPECT_EQ(DivideCpus({{0}, {1}, {2}}, 1), (Lists{{0, 1, 2}}));
}

}  // namespace
}  // namespace attention
