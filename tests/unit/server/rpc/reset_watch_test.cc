#include "server/rpc/reset_watch.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

namespace attention::server {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Time kStart = absl::UnixEpoch();

TEST(ResetBudgetTest, ResetsWithinTheBudgetAreFine) {
  ResetBudget budget(kStart);
  EXPECT_TRUE(budget.Spend(900, 0, kStart));
  EXPECT_TRUE(budget.Spend(1800, 0, kStart + absl::Seconds(1))) << "it is filled again";
  EXPECT_FALSE(budget.Spend(3800, 0, kStart + absl::Seconds(1)));
}

TEST(ResetBudgetTest, ABusyConnectionMayResetAsManyAsSucceed) {
  ResetBudget budget(kStart);
  EXPECT_TRUE(budget.Spend(50'000, 60'000, kStart));
  EXPECT_FALSE(budget.Spend(60'000, 60'001, kStart)) << "what succeeded before does not count";
}

class ResetWatchTest : public ::testing::Test {
 protected:
  ServerMetrics metrics_;
  std::vector<std::string> closed_;
  std::vector<std::string> warnings_;
  bool can_close_ = true;
  ResetWatch watch_{[this](const std::string& address) {
                      closed_.push_back(address);
                      return can_close_;
                    },
                    [this](const std::string& text) { warnings_.push_back(text); }, metrics_};
};

TEST_F(ResetWatchTest, AFloodEndsItsConnectionAndIsToldOnce) {
  watch_.Judge({1, "ipv4:192.0.2.1:5", 20, 1000}, kStart);
  watch_.Judge({2, "ipv4:192.0.2.2:6", 5000, 0}, kStart);
  watch_.Judge({2, "ipv4:192.0.2.2:6", 9000, 0}, kStart);
  EXPECT_THAT(closed_, ElementsAre("ipv4:192.0.2.2:6"));
  EXPECT_THAT(warnings_, ElementsAre(AllOf(HasSubstr("ipv4:192.0.2.2:6 has reset 5000"),
                                           HasSubstr("its connection is closed"))));
  EXPECT_EQ(metrics_.connections_reset_too_often.value(), 1);
}

// Connections at a unix socket have no names of their own.
TEST_F(ResetWatchTest, AFloodThroughAUnixSocketIsTold) {
  can_close_ = false;
  watch_.Judge({1, "unix:", 5000, 0}, kStart);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("cannot be told")));
}

}  // namespace
}  // namespace attention::server
