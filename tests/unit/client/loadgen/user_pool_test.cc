#include "client/loadgen/user_pool.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/unit/client/loadgen/fake_server.h"

namespace attention::loadgen {
namespace {

class UserPoolTest : public ::testing::Test {
 protected:
  FakeClock clock_;
  std::atomic<bool> stop_ = false;
};

TEST_F(UserPoolTest, GivesOutEachUserOnceUpToTheLimit) {
  UserPool pool(3, 2, clock_);
  const auto first = pool.Acquire(clock_.Now(), stop_);
  const auto second = pool.Acquire(clock_.Now(), stop_);
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_NE(first->user, second->user);
  EXPECT_FALSE(first->has_waited);
  EXPECT_EQ(pool.in_use(), 2);
  EXPECT_FALSE(pool.Acquire(clock_.Now(), stop_).has_value());
}

TEST_F(UserPoolTest, TheUserThatRestedLongestComesFirst) {
  UserPool pool(2, 2, clock_);
  const int first = pool.Acquire(clock_.Now(), stop_)->user;
  clock_.Advance(absl::Seconds(1));
  pool.Release(first, clock_.Now());
  EXPECT_NE(pool.Acquire(clock_.Now(), stop_)->user, first);
}

TEST_F(UserPoolTest, ARestingUserIsWaitedFor) {
  UserPool pool(1, 1, clock_);
  pool.Acquire(clock_.Now(), stop_);
  const absl::Duration begin = clock_.Now();
  pool.Release(0, begin + absl::Milliseconds(100));
  EXPECT_FALSE(pool.Acquire(begin + absl::Milliseconds(50), stop_).has_value());
  EXPECT_TRUE(pool.Acquire(absl::InfiniteDuration(), stop_)->has_waited);
  EXPECT_GE(clock_.Now(), begin + absl::Milliseconds(100));
}

TEST_F(UserPoolTest, StopEndsAWait) {
  UserPool pool(1, 1, clock_);
  pool.Acquire(clock_.Now(), stop_);
  std::jthread waiting(
      [&] { EXPECT_FALSE(pool.Acquire(absl::InfiniteDuration(), stop_).has_value()); });
  stop_ = true;
}

TEST_F(UserPoolTest, ReleaseWakesAWaiter) {
  UserPool pool(1, 1, clock_);
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
