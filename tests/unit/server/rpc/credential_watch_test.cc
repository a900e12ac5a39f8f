#include "server/rpc/credential_watch.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CredentialWatchTest : public ::testing::Test {
 protected:
  void Refuse(const std::string& address, int times, absl::Time now) {
    for (int i = 0; i < times; ++i) watch_.OnRefused(address, now);
  }

  const absl::Time start_ = absl::FromUnixSeconds(1000);
  bool is_known_ = true;
  std::vector<std::string> closed_, told_;
  CredentialWatch watch_{[this](const std::string& address) {
                           if (is_known_) closed_.push_back(address);
                           return is_known_;
                         },
                         [this](const std::string& text) { told_.push_back(text); }};
};

TEST_F(CredentialWatchTest, AConnectionIsEndedForManyRefusalsInASecond) {
  Refuse("a", CredentialWatch::kMaxRefusals - 1, start_);
  Refuse("b", CredentialWatch::kMaxRefusals - 1, start_);
  EXPECT_THAT(closed_, IsEmpty());
  Refuse("a", 1, start_ + absl::Milliseconds(999));
  EXPECT_THAT(closed_, ElementsAre("a"));
  EXPECT_THAT(told_, ElementsAre(HasSubstr("ended 1 connections, the latest of a")));
}

TEST_F(CredentialWatchTest, SlowOnesGoOn) {
  for (int second = 0; second < 10; ++second) {
    Refuse("a", CredentialWatch::kMaxRefusals - 1, start_ + absl::Seconds(second));
  }
  EXPECT_THAT(closed_, IsEmpty());
}

TEST_F(CredentialWatchTest, ItIsToldOfOnceInAWhile) {
  for (int i = 0; i < 7; ++i) Refuse("a", CredentialWatch::kMaxRefusals, start_);
  EXPECT_EQ(closed_.size(), 7u);
  EXPECT_EQ(told_.size(), 1u);
  Refuse("a", CredentialWatch::kMaxRefusals, start_ + absl::Seconds(6));
  ASSERT_EQ(told_.size(), 2u);
  EXPECT_THAT(told_[1], HasSubstr("ended 7 connections"));
}

TEST_F(CredentialWatchTest, AConnectionThatIsNotKnownIsLeft) {
  is_known_ = false;
  Refuse("unix:", 10 * CredentialWatch::kMaxRefusals, start_);
  EXPECT_THAT(told_, IsEmpty());
}

TEST_F(CredentialWatchTest, TheNumberOfCountsIsBounded) {
  Refuse("a", CredentialWatch::kMaxRefusals - 1, start_);
  for (int i = 0; i < 10000; ++i) Refuse(std::to_string(i), 1, start_);
  Refuse("a", 1, start_);  // forgotten
  EXPECT_THAT(closed_, IsEmpty());
}

}  // namespace
}  // namespace attention::server
