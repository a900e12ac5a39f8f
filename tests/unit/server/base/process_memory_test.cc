#include "server/base/process_memory.h"

#include <gtest/gtest.h>

namespace attention::server {
namespace {

constexpr std::int64_t kMib = std::int64_t{1} << 20;

TEST(ProcessMemoryTest, TheSystemTellsWhatIsResident) { EXPECT_GT(ResidentBytes(), kMib); }

TEST(FreedMemoryTest, WhatABurstLeftIsExcessiveOnceItHasNotBeenNeededForAWhile) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/8000 * kMib);
  EXPECT_FALSE(freed.IsExcessive({50 * kMib, 10 * kMib, 60 * kMib}));
  EXPECT_FALSE(freed.IsExcessive({4000 * kMib, 10 * kMib, 4010 * kMib}));
  EXPECT_FALSE(freed.IsExcessive({50 * kMib, 3960 * kMib, 4010 * kMib})) << "needed a second ago";
  EXPECT_FALSE(freed.IsExcessive({50 * kMib, 3960 * kMib, 4010 * kMib}));
  EXPECT_TRUE(freed.IsExcessive({50 * kMib, 3960 * kMib, 4010 * kMib}));
}

TEST(FreedMemoryTest, GivenBackItIsNotGivenBackAgain) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/8000 * kMib);
  freed.IsExcessive({50 * kMib, 10 * kMib, 60 * kMib});
  EXPECT_TRUE(freed.IsExcessive({50 * kMib, 3960 * kMib, 4010 * kMib}));
  freed.GivenBack(12 * kMib);
  EXPECT_FALSE(freed.IsExcessive({50 * kMib, 3960 * kMib, 62 * kMib})) << "the count stays";
  EXPECT_FALSE(freed.IsExcessive({50 * kMib, 3960 * kMib, 160 * kMib}));
  EXPECT_TRUE(freed.IsExcessive({50 * kMib, 3960 * kMib, 170 * kMib})) << "another burst";
}

TEST(FreedMemoryTest, MemoryThatIsInUseWhileAnotherIsGivenBackIsGivenBackLater) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/8000 * kMib);
  EXPECT_TRUE(freed.IsExcessive({1000 * kMib, 800 * kMib, 1200 * kMib}));
  freed.GivenBack(20 * kMib);
  freed.IsExcessive({1000 * kMib, 800 * kMib, 1020 * kMib});
  for (int i = 0; i < 3; ++i) freed.IsExcessive({10 * kMib, 1790 * kMib, 1020 * kMib});
  EXPECT_TRUE(freed.IsExcessive({10 * kMib, 1790 * kMib, 1020 * kMib}));
}

TEST(FreedMemoryTest, AddressesThatWereNeverTouchedAreNotMemory) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/8000 * kMib);
  EXPECT_FALSE(freed.IsExcessive({50 * kMib, 800 * kMib, 90 * kMib}));
}

TEST(FreedMemoryTest, ABurstBeforeTheFirstSampleIsGivenBackToo) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/8000 * kMib);
  EXPECT_TRUE(freed.IsExcessive({50 * kMib, 3960 * kMib, 4010 * kMib}));
}

TEST(FreedMemoryTest, ASteadyLoadKeepsItsWarmMemory) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/8000 * kMib);
  freed.IsExcessive({10 * kMib, 10 * kMib, 20 * kMib});
  for (int i = 0; i < 20; ++i) {
    EXPECT_FALSE(freed.IsExcessive({900 * kMib, 100 * kMib, 1000 * kMib}));
    EXPECT_FALSE(freed.IsExcessive({50 * kMib, 950 * kMib, 1000 * kMib}));
  }
}

TEST(FreedMemoryTest, NearTheLimitAllThatIsFreeIsGivenBackAgainAndAgain) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/800 * kMib);
  EXPECT_FALSE(freed.IsNearLimit(500 * kMib));
  EXPECT_TRUE(freed.IsNearLimit(610 * kMib));
  freed.Left(300 * kMib);
  EXPECT_FALSE(freed.IsNearLimit(590 * kMib));
  EXPECT_TRUE(freed.IsNearLimit(610 * kMib));
}

TEST(FreedMemoryTest, NearTheLimitWhatIsUsedIsNotLookedThroughAgainUntilThereIsMore) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/800 * kMib);
  EXPECT_TRUE(freed.IsNearLimit(650 * kMib));
  freed.Left(640 * kMib);
  EXPECT_FALSE(freed.IsNearLimit(660 * kMib));
  EXPECT_TRUE(freed.IsNearLimit(680 * kMib));
}

TEST(FreedMemoryTest, WhatIsUsedIsLeftAlone) {
  FreedMemory freed(/*keep_bytes=*/100 * kMib, /*memory_bytes=*/8000 * kMib);
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(freed.IsExcessive({3000 * kMib, 0, 3000 * kMib}));
}

}  // namespace
}  // namespace attention::server
