#include "server/config/byte_size.h"

#include <gtest/gtest.h>

namespace attention::server {
namespace {

TEST(ByteSizeTest, AWholeNumberMayHaveAUnit) {
  EXPECT_EQ(ParseByteSize("0"), 0);
  EXPECT_EQ(ParseByteSize("1500"), 1500);
  EXPECT_EQ(ParseByteSize("7B"), 7);
  for (const char* text : {"2K", "2k", "2Ki", "2KiB", "2kib", "2 KiB"}) {
    EXPECT_EQ(ParseByteSize(text), 2048) << text;
  }
  EXPECT_EQ(ParseByteSize("3MiB"), 3 << 20);
  EXPECT_EQ(ParseByteSize("2GiB"), std::int64_t{2} << 30);
  EXPECT_EQ(ParseByteSize("5T"), std::int64_t{5} << 40);
}

TEST(ByteSizeTest, AnythingElseIsNone) {
  for (const char* text : {"", "GiB", "1.5GiB", "-1", "+1", "1GB", "1Gib ", "1  GiB", "1GiBs",
                           "0x10", "1e9", "9223372036854775808", "8388608T"}) {
    EXPECT_EQ(ParseByteSize(text), std::nullopt) << text;
  }
}

TEST(ByteSizeTest, WhatIsWrittenReadsAsTheSame) {
  EXPECT_EQ(FormatByteSize(0), "0");
  EXPECT_EQ(FormatByteSize(1500), "1500");
  EXPECT_EQ(FormatByteSize(std::int64_t{1} << 30), "1GiB");
  EXPECT_EQ(FormatByteSize(std::int64_t{1536} << 20), "1536MiB");
  EXPECT_EQ(FormatByteSize(std::int64_t{3} << 50), "3072TiB");
  for (const std::int64_t bytes : {std::int64_t{1}, std::int64_t{1} << 20, std::int64_t{5} << 40}) {
    EXPECT_EQ(ParseByteSize(FormatByteSize(bytes)), bytes);
  }
}

}  // namespace
}  // namespace attention::server
