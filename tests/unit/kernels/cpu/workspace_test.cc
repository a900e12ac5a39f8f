#include "kernels/cpu/workspace.h"

#include <gmock/gmock.h>

#include <cstring>
#include <memory>

namespace attention::cpu {
namespace {

TEST(WorkspaceTest, AReturnedWorkspaceIsTakenAgainWithItsMemory) {
  const auto pool = std::make_shared<WorkspacePool>(2);
  WorkspaceLease lease = pool->Take(100);
  ASSERT_TRUE(lease->arena.Reserve(100));
  EXPECT_EQ(lease->threads.size(), 2u);
  const Workspace* workspace = lease.get();
  const char* memory = lease->arena.data();
  lease.reset();
  lease = pool->Take(100);
  EXPECT_EQ(lease.get(), workspace);
  EXPECT_EQ(lease->arena.data(), memory);
}

TEST(WorkspaceTest, LeasesAtOnceAreDistinct) {
  const auto pool = std::make_shared<WorkspacePool>(1);
  const WorkspaceLease first = pool->Take(0);
  const WorkspaceLease second = pool->Take(0);
  EXPECT_NE(first.get(), second.get());
}

// So that a decode step beside a long prompt does not take the prompt's memory from the next one.
TEST(WorkspaceTest, TheSmallestThatFitsIsTakenElseTheLargest) {
  const auto pool = std::make_shared<WorkspacePool>(1);
  WorkspaceLease small = pool->Take(0), middle = pool->Take(0), large = pool->Take(0);
  ASSERT_TRUE(small->arena.Reserve(10) && middle->arena.Reserve(100) && large->arena.Reserve(1000));
  const Workspace* const spaces[] = {small.get(), middle.get(), large.get()};
  large.reset();
  small.reset();
  middle.reset();
  EXPECT_EQ(pool->Take(10).get(), spaces[0]);
  EXPECT_EQ(pool->Take(11).get(), spaces[1]);
  EXPECT_EQ(pool->Take(500).get(), spaces[2]);
  EXPECT_EQ(pool->Take(5000).get(), spaces[2]);
}

TEST(WorkspaceTest, ALeaseForgetsTheLastRun) {
  const auto pool = std::make_shared<WorkspacePool>(1);
  WorkspaceLease lease = pool->Take(0);
  lease->phase = RunPhase::kMerge;
  lease->num_claimed = 7;
  lease->threads[0].claimed = 3;
  lease->threads[0].is_begun = lease->threads[0].is_next_claimed = true;
  lease->threads[0].scratch->progress.is_begun = true;
  lease->threads[0].scratch->flops = 1;
  lease.reset();
  lease = pool->Take(0);
  EXPECT_EQ(lease->phase, RunPhase::kPack);
  EXPECT_EQ(lease->num_claimed, 0);
  EXPECT_LT(lease->threads[0].claimed, 0);
  EXPECT_FALSE(lease->threads[0].is_begun || lease->threads[0].is_next_claimed);
  EXPECT_FALSE(lease->threads[0].scratch->progress.is_begun);
  EXPECT_EQ(lease->threads[0].scratch->flops, 0);
}

TEST(WorkspaceTest, ALeaseMayOutliveItsOwner) {
  auto pool = std::make_shared<WorkspacePool>(1);
  WorkspaceLease lease = pool->Take(0);
  pool.reset();
  ASSERT_TRUE(lease->arena.Reserve(64));
  std::memset(lease->arena.data(), 1, 64);
}

}  // namespace
}  // namespace attention::cpu
