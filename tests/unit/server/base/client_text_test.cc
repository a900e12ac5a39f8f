#include "server/base/client_text.h"

#include <gtest/gtest.h>

namespace attention::server {
namespace {

TEST(ClientTextTest, WhatIsShortAndPrintableIsQuotedAsItIs) {
  EXPECT_EQ(Quoted("tenant-a"), "'tenant-a'");
  EXPECT_EQ(Quoted(""), "''");
}

TEST(ClientTextTest, NothingForgesALineOrMovesTheCursor) {
  EXPECT_EQ(Quoted("a\nb\r\x1b[2J"), R"('a\nb\r\033[2J')");
  EXPECT_EQ(Quoted("it's"), R"('it\'s')") << "the quotes say where the text ends";
  EXPECT_EQ(Quoted(absl::string_view("\0\x7f\xff\xc3\xbc", 5)), R"('\000\177\377\303\274')")
      << "a protobuf string must be UTF-8, so of others nothing is kept";
  EXPECT_EQ(Printable("q is 'a'\nand more\x1b"), R"(q is 'a'\nand more\033)");
}

TEST(ClientTextTest, OfALongTextTheBeginningAndItsLengthAreTold) {
  EXPECT_EQ(Quoted(std::string(kMaxQuotedBytes, 'x')),
            "'" + std::string(kMaxQuotedBytes, 'x') + "'");
  EXPECT_EQ(Quoted(std::string(5'000'000, 'x')),
            "'" + std::string(kMaxQuotedBytes, 'x') + "...' (5000000 bytes)");
  EXPECT_EQ(Printable(std::string(2000, 'x'), 10), "xxxxxxxxxx... (2000 bytes)");
  EXPECT_EQ(Printable(std::string(2000, '\n'), 10), R"(\n\n\n\n\n... (2000 bytes))")
      << "the bound is on what is written";
}

}  // namespace
}  // namespace attention::server
