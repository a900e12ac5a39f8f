#include "client/internal/convert/page_token.h"

#include <gmock/gmock.h>

namespace attention::client::internal {
namespace {

TEST(PageTokenTest, OneTargetsTokenPassesThrough) {
  const auto parsed = ParsePageToken("any/thing", 1);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->target, 0u);
  EXPECT_EQ(parsed->token, "any/thing");
  EXPECT_EQ(NextPageToken({0, "any/thing"}, 1), "any/thing");
  EXPECT_EQ(NextPageToken({0, ""}, 1), "");
}

TEST(PageTokenTest, TargetsFollowEachOther) {
  EXPECT_EQ(NextPageToken({0, "a/b"}, 2), "0/a/b");
  EXPECT_EQ(NextPageToken({0, ""}, 2), "1/");
  EXPECT_EQ(NextPageToken({1, ""}, 2), "");
  const auto parsed = ParsePageToken("1/a/b", 2);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->target, 1u);
  EXPECT_EQ(parsed->token, "a/b");
}

TEST(PageTokenTest, RefusesWhatIsNotItsOwn) {
  for (const char* text : {"x", "x/", "2/", "-1/", "/"}) {
    EXPECT_EQ(ParsePageToken(text, 2).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace attention::client::internal
