// The ground that tests of device code stand on: barriers, collectives and copies behave as on a
// GPU, and misuse is caught.
#include "tests/simt/block.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <set>
#include <vector>

namespace attention::simt {
namespace {

TEST(BlockTest, EveryThreadOfEveryBlockRunsOnce) {
  std::set<std::pair<int, int>> seen;
  RunBlocks(3, 64, 0, 1, [&](char*) {
    EXPECT_TRUE(seen.emplace(Current().block_index(), Current().index()).second);
  });
  EXPECT_EQ(seen.size(), 3u * 64u);
}

TEST(BlockTest, ABarrierShowsWhatEveryThreadWroteBefore) {
  for (std::uint32_t seed = 0; seed < 10; ++seed) {
    RunBlocks(2, 128, 128 * sizeof(int), seed, [](char* shared) {
      auto* values = reinterpret_cast<int*>(shared);
      values[Current().index()] = Current().index();
      Current().MeetBlock(false);
      const int other = 127 - Current().index();
      EXPECT_EQ(values[other], other);
    });
  }
}

TEST(BlockTest, ABarrierTellsWhetherAnyThreadSaidSo) {
  RunBlocks(1, 64, 0, 1, [](char*) {
    EXPECT_TRUE(Current().MeetBlock(Current().index() == 37));
    EXPECT_FALSE(Current().MeetBlock(false));
    EXPECT_TRUE(Current().MeetBlock(true));
  });
}

TEST(BlockTest, ACollectiveSeesTheOperandsOfItsWarpInOrder) {
  RunBlocks(1, 96, 0, 1, [](char*) {
    int operand = Current().index();
    const int first = operand / 32 * 32;
    Current().Meet({"test", &operand}, [first](void* const(&all)[kWarpThreads]) {
      for (int lane = 0; lane < kWarpThreads; ++lane) {
        EXPECT_EQ(*static_cast<int*>(all[lane]), first + lane);
      }
      *static_cast<int*>(all[5]) = -1;
    });
    EXPECT_EQ(operand, Current().index() % 32 == 5 ? -1 : Current().index());
  });
}

TEST(BlockTest, ACopyArrivesWhenItsGroupIsWaitedFor) {
  alignas(16) static const float kOnes[4] = {1, 1, 1, 1};
  RunBlocks(1, 32, 32 * 48, 1, [](char* shared) {
    char* mine = shared + Current().index() * 48;
    const auto at = [mine](int copy) {
      float value;
      std::memcpy(&value, mine + copy * 16, sizeof(value));
      return value;
    };
    Current().BeginCopy({mine, kOnes});
    Current().CommitCopies();
    Current().BeginCopy({mine + 16, nullptr});
    Current().BeginCopy({mine + 32, kOnes});
    Current().CommitCopies();
    EXPECT_TRUE(std::isnan(at(0)));
    Current().WaitCopies(1);
    EXPECT_EQ(at(0), 1.0f);
    EXPECT_TRUE(std::isnan(at(1)));
    Current().WaitCopies(0);
    EXPECT_EQ(at(1), 0.0f);
    EXPECT_EQ(at(2), 1.0f);
  });
}

TEST(BlockDeathTest, LanesInDifferentCollectivesAreCaught) {
  EXPECT_DEATH(RunBlocks(1, 32, 0, 1,
                         [](char*) {
                           const char* name = Current().index() == 3 ? "one" : "another";
                           Current().Meet({name, nullptr}, [](void* const(&)[kWarpThreads]) {});
                         }),
               "different collectives");
}

TEST(BlockDeathTest, AThreadThatMissesABarrierIsCaught) {
  EXPECT_DEATH(RunBlocks(1, 64, 0, 1,
                         [](char*) {
                           if (Current().index() != 9) Current().MeetBlock(false);
                         }),
               "wait for each other");
}

TEST(BlockDeathTest, AMisalignedCopyIsCaught) {
  EXPECT_DEATH(RunBlocks(1, 32, 64, 1,
                         [](char* shared) {
                           Current().BeginCopy({shared + 8, nullptr});
                         }),
               "aligned");
}

}  // namespace
}  // namespace attention::simt
