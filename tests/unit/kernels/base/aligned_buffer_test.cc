#include "kernels/base/aligned_buffer.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <utility>

#include "kernels/base/divide.h"

namespace attention {
namespace {

TEST(AlignedBufferTest, StartIsAlignedForEverySize) {
  for (std::size_t count : {1, 3, 16, 17, 1000}) {
    AlignedBuffer<float> buffer(count);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % kCacheLineBytes, 0u);
    EXPECT_GE(buffer.capacity(), count);
  }
}

TEST(AlignedBufferTest, ReserveKeepsALargerBuffer) {
  AlignedBuffer<int> buffer(100);
  int* data = buffer.data();
  data[99] = 7;
  EXPECT_EQ(buffer.Reserve(10), data);
  EXPECT_EQ(data[99], 7);
}

TEST(AlignedBufferTest, ReserveGrows) {
  AlignedBuffer<int> buffer(1);
  int* data = buffer.Reserve(5000);
  data[4999] = 1;
  EXPECT_EQ(buffer.capacity(), 5000u);
}

TEST(AlignedBufferTest, MovingLeavesTheSourceEmpty) {
  AlignedBuffer<int> buffer(8);
  int* data = buffer.data();
  AlignedBuffer<int> moved(std::move(buffer));
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(buffer.data(), nullptr);  // NOLINT(bugprone-use-after-move)
}

TEST(DivideTest, RoundsAsNamed) {
  EXPECT_EQ(CeilDiv(0, 16), 0);
  EXPECT_EQ(CeilDiv(1, 16), 1);
  EXPECT_EQ(CeilDiv(16, 16), 1);
  EXPECT_EQ(CeilDiv(17, 16), 2);
  EXPECT_EQ(RoundUp(17, 16), 32);
  EXPECT_EQ(RoundDown(31, 16), 16);
}

}  // namespace
}  // namespace attention
