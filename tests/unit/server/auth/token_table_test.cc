#include "server/auth/token_table.h"

#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const Identity kUser = {"acme", Role::kUse};
const Identity kOperator = {"ops", Role::kAdmin};

TEST(TokenTableTest, ATokenGivesItsTenantAndRole) {
  const NewToken user = MakeToken(kUser), admin = MakeToken(kOperator);
  const auto table =
      TokenTable::Parse(absl::StrCat("# tokens\n\n", user.line, "\n", admin.line, "\n"));
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->size(), 2u);
  EXPECT_EQ(table->Find(user.token), kUser);
  EXPECT_EQ(table->Find(admin.token), kOperator);
}

TEST(TokenTableTest, WhateverDiffersFromATokenIsNone) {
  const NewToken made = MakeToken(kUser), other = MakeToken(kUser);
  const auto table = TokenTable::Parse(absl::StrCat(made.line, "\n"));
  ASSERT_TRUE(table.ok());
  const std::string id = made.token.substr(0, made.token.find('.'));
  std::string changed = made.token;
  changed.back() ^= 1;
  for (const std::string& token :
       {std::string(), id, id + ".", changed, made.token + "0", made.token.substr(1), other.token,
        made.token + std::string(1, '\0'), std::string(100000, 'x')}) {
    EXPECT_FALSE(table->Find(token).has_value()) << token.size();
  }
  for (std::size_t length = 0; length < made.token.size(); ++length) {
    EXPECT_FALSE(table->Find(made.token.substr(0, length)).has_value()) << length;
  }
}

TEST(TokenTableTest, TheFileHoldsNothingOfTheSecret) {
  const NewToken made = MakeToken(kUser);
  const std::string secret = made.token.substr(made.token.find('.') + 1);
  EXPECT_EQ(secret.size(), 64u);
  EXPECT_THAT(made.line, Not(HasSubstr(secret)));
  EXPECT_NE(MakeToken(kUser).token, made.token);
}

TEST(TokenTableTest, AWrongFileIsRefusedWithItsLine) {
  const std::string good = MakeToken(kUser).line;
  const std::vector<std::string> words = absl::StrSplit(good, ' ');
  const auto with = [&](std::size_t index, const std::string& word) {
    std::vector<std::string> changed = words;
    changed[index] = word;
    return absl::StrCat(good.substr(0, 0), changed[0], " ", changed[1], " ", changed[2], " ",
                        changed[3], " ", changed[4], "\n");
  };
  const struct {
    std::string text;
    const char* message;
  } cases[] = {
      {"", "expected a line with a token"},
      {"# nothing\n", "expected a line with a token"},
      {good, "line 1: expected a line end"},
      {"\n" + good.substr(0, good.size() / 2), "line 2: expected a line end"},
      {"acme use\n", "line 1: expected five words"},
      {good + " more\n", "line 1: expected five words"},
      {with(0, "a.b"), "line 1: expected an id"},
      {with(1, std::string(129, 'a')), "line 1: expected a tenant"},
      {with(2, "root"), "line 1: expected the role"},
      {with(3, "a-b"), "line 1: expected a salt"},
      {with(4, "abc"), "line 1: expected a hash"},
      {good + "\n" + good + "\n", "line 2: expected an id that no line before it has"},
  };
  for (const auto& [text, message] : cases) {
    const auto table = TokenTable::Parse(text);
    EXPECT_TRUE(absl::IsInvalidArgument(table.status())) << text;
    EXPECT_THAT(std::string(table.status().message()), HasSubstr(message));
    EXPECT_THAT(std::string(table.status().message()), Not(HasSubstr(words[4].substr(0, 8))));
  }
}

}  // namespace
}  // namespace attention::server
