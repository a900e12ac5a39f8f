#include "server/listener/listener_health.h"

#include <gmock/gmock.h>

namespace attention::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ListenerHealthTest : public ::testing::Test {
 protected:
  void Miss(const std::string& address, int times) {
    for (int i = 0; i < times; ++i) {
      health_.Record(address, absl::DeadlineExceededError("no answer in time"));
    }
  }

  ServerMetrics metrics_;
  ListenerHealth health_{metrics_};
};

TEST_F(ListenerHealthTest, AMissOrTwoAreABusyMachine) {
  EXPECT_THAT(health_.WhyNotReady(), IsEmpty());
  Miss("a:1", ListenerHealth::kMissesUntilNotReady - 1);
  EXPECT_THAT(health_.WhyNotReady(), IsEmpty());
  health_.Record("a:1", absl::OkStatus());
  Miss("a:1", ListenerHealth::kMissesUntilNotReady - 1);
  EXPECT_THAT(health_.WhyNotReady(), IsEmpty()) << "an answer begins the count again";
}

TEST_F(ListenerHealthTest, OneListenerThatDoesNotAnswerIsEnoughAndIsNamed) {
  health_.Record("a:1", absl::OkStatus());
  Miss("b:2", ListenerHealth::kMissesUntilNotReady);
  EXPECT_THAT(health_.WhyNotReady(), AllOf(HasSubstr("b:2"), HasSubstr("no answer in time")));
  EXPECT_THAT(health_.WhyNotAlive(), IsEmpty()) << "it is not restarted yet";
  health_.Record("b:2", absl::OkStatus());
  EXPECT_THAT(health_.WhyNotReady(), IsEmpty());
}

TEST_F(ListenerHealthTest, AfterManyMissesItIsToBeRestarted) {
  Miss("a:1", ListenerHealth::kMissesUntilNotAlive);
  EXPECT_THAT(health_.WhyNotAlive(), HasSubstr("15 in a row"));
  EXPECT_EQ(metrics_.probes_missed.value(), 15);
}

}  // namespace
}  // namespace attention::server
