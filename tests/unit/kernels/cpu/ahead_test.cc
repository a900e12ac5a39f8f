// The list of lines to prefetch: what a cursor asks for, and when it has nothing left.
#include "kernels/cpu/ahead.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <vector>

namespace attention::cpu {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Addresses are only prefetched, never read: any number will do.
const char* Address(std::uintptr_t value) { return reinterpret_cast<const char*>(value); }

// The lines that `steps` steps ask for, relative to `base`; the cursor is put back.
std::vector<std::uintptr_t> LinesOf(AheadList& list, int steps, const char* base) {
  std::vector<std::uintptr_t> lines;
  AheadCursor cursor = list.cursor();
  for (int i = 0; i < steps && cursor.line != cursor.end; ++i) {
    lines.push_back(reinterpret_cast<std::uintptr_t>(cursor.line) -
                    reinterpret_cast<std::uintptr_t>(base));
    cursor.Step();
  }
  list.set_cursor(cursor);
  return lines;
}

TEST(AheadListTest, IsEmptyUntilSomethingIsAdded) {
  AheadList list;
  EXPECT_TRUE(list.empty());
  list.Add(Address(0x10000), 64);
  EXPECT_FALSE(list.empty());
  list.Clear();
  EXPECT_TRUE(list.empty());
}

TEST(AheadListTest, StepsThroughTheLinesOfItsChunksInOrder) {
  AheadList list;
  const char* base = Address(0x10000);
  list.Add(base, 192);
  list.Add(base + 4096, 64);
  list.Add(base + 1024, 100);
  EXPECT_THAT(LinesOf(list, 100, base), ElementsAre(0, 64, 128, 4096, 1024, 1088));
  EXPECT_TRUE(list.empty());
}

TEST(AheadListTest, GoesOnWhereTheLastCursorStopped) {
  AheadList list;
  const char* base = Address(0x10000);
  list.Add(base, 192);
  list.Add(base + 4096, 128);
  EXPECT_THAT(LinesOf(list, 2, base), ElementsAre(0, 64));
  EXPECT_THAT(LinesOf(list, 2, base), ElementsAre(128, 4096));
  EXPECT_THAT(LinesOf(list, 2, base), ElementsAre(4160));
  EXPECT_THAT(LinesOf(list, 2, base), IsEmpty());
}

TEST(AheadListTest, AStepPastTheEndStays) {
  AheadList list;
  list.Add(Address(0x10000), 64);
  AheadCursor cursor = list.cursor();
  for (int i = 0; i < 10; ++i) cursor.Step();
  list.set_cursor(cursor);
  EXPECT_TRUE(list.empty());
}

TEST(AheadListTest, JoinsChunksThatContinueEachOther) {
  AheadList list;
  const char* base = Address(0x10000);
  // More than it has room for, if each were one.
  for (int i = 0; i < 3 * AheadList::kMaxChunks; ++i) list.Add(base + 64 * i, 64);
  EXPECT_EQ(LinesOf(list, 10 * AheadList::kMaxChunks, base).size(), 3u * AheadList::kMaxChunks);
}

TEST(AheadListTest, LeavesOutWhatFindsNoRoom) {
  AheadList list;
  const char* base = Address(0x10000);
  for (int i = 0; i < 2 * AheadList::kMaxChunks; ++i) list.Add(base + 4096 * i, 64);
  EXPECT_EQ(LinesOf(list, 10 * AheadList::kMaxChunks, base).size(), 1u * AheadList::kMaxChunks);
}

}  // namespace
}  // namespace attention::cpu
