#include "client/loadgen/lane_pool.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/unit/client/loadgen/fake_server.h"

namespace attention::loadgen {
namespace {

class LanePoolTest : public ::testing::Test {
 protected:
  FakeClock clock_;
  std::atomic<bool> stop_ = false;
};

TEST_F(LanePoolTest, GivesOutEachLaneOnceUpToTheLimit) {
  LanePool pool(3, 2, clock_);
  const auto first = pool.Acquire(clock_.Now(), stop_);
  const auto second = pool.Acquire(clock_.Now(), stop_);
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_NE(first->lane, second->lane);
  EXPECT_FALSE(first->has_waited);
  EXPECT_EQ(pool.in_use(), 2);
  EXPECT_FALSE(pool.Acquire(clock_.Now(), stop_).has_value());
}

TEST_F(LanePoolTest, TheLaneThatRestedLongestComesFirst) {
  LanePool pool(2, 2, clock_);
  const int first = pool.Acquire(clock_.Now(), stop_)->lane;
  clock_.Advance(absl::Seconds(1));
  pool.Release(first, clock_.Now());
  EXPECT_NE(pool.Acquire(clock_.Now(), stop_)->lane, first);
}

TEST_F(LanePoolTest, ARestingLaneIsWaitedFor) {
  LanePool pool(1, 1, clock_);
  pool.Acquire(clock_.Now(), stop_);
  const absl::Duration begin = clock_.Now();
  pool.Release(0, begin + absl::Milliseconds(100));
  EXPECT_FALSE(pool.Acquire(begin + absl::Milliseconds(50), stop_).has_value());
  EXPECT_TRUE(pool.Acquire(absl::InfiniteDuration(), stop_)->has_waited);
  EXPECT_GE(clock_.Now(), begin + absl::Milliseconds(100));
}

TEST_F(LanePoolTest, StopEndsAWait) {
  LanePool pool(1, 1, clock_);
  pool.Acquire(clock_.Now(), stop_);
  std::jthread waiting(
      [&] { EXPECT_FALSE(pool.Acquire(absl::InfiniteDuration(), stop_).has_value()); });
  stop_ = true;
}

TEST_F(LanePoolTest, ReleaseWakesAWaiter) {
  LanePool pool(1, 1, clock_);
  pool.Acquire(clock_.Now(), stop_);
  std::jthread waiting(
      [&] { EXPECT_TRUE(pool.Acquire(absl::InfiniteDuration(), stop_).has_value()); });
  EXPECT_FALSE(pool.WaitUntilIdle(absl::Milliseconds(1)));
  pool.Release(0, clock_.Now());
  waiting.join();
  pool.Release(0, clock_.Now());
  EXPECT_TRUE(pool.WaitUntilIdle(absl::ZeroDuration()));
}

}  // namespace
}  // namespace attention::loadgen
