#include "server/engine/device_watch.h"

#include <gtest/gtest.h>

#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

TEST(DeviceWatchTest, GivesUpWhenNoDeviceHasBeenUsableForTheTimeout) {
  FakeClock clock;
  DeviceWatch watch(absl::Seconds(30));
  EXPECT_FALSE(watch.RecoveryTimedOut(true, clock.Now()));
  clock.Advance(absl::Hours(1));
  EXPECT_FALSE(watch.RecoveryTimedOut(false, clock.Now())) << "it counts from when it was seen";
  clock.Advance(absl::Seconds(29));
  EXPECT_FALSE(watch.RecoveryTimedOut(false, clock.Now()));
  clock.Advance(absl::Seconds(1));
  EXPECT_TRUE(watch.RecoveryTimedOut(false, clock.Now()));
}

TEST(DeviceWatchTest, ADeviceThatComesBackStartsItAnew) {
  FakeClock clock;
  DeviceWatch watch(absl::Seconds(30));
  EXPECT_FALSE(watch.RecoveryTimedOut(false, clock.Now()));
  clock.Advance(absl::Seconds(29));
  EXPECT_FALSE(watch.RecoveryTimedOut(true, clock.Now()));
  EXPECT_FALSE(watch.RecoveryTimedOut(false, clock.Now()));
  clock.Advance(absl::Seconds(29));
  EXPECT_FALSE(watch.RecoveryTimedOut(false, clock.Now()));
}

}  // namespace
}  // namespace attention::server
