#include "server/config/limits_file.h"

#include <gmock/gmock.h>

#include <fstream>
#include <limits>

namespace attention::server {
namespace {

using ::testing::HasSubstr;

TenantLimits Base() {
  TenantLimits base;
  base.kv_bytes = 900;
  base.layer_bytes = 800;
  base.sessions = 70;
  base.streams = 60;
  return base;
}

absl::StatusOr<TenantLimitsSet> Parse(absl::string_view text) {
  return ParseLimits(text, "limits.toml", Base());
}

TEST(LimitsFileTest, AnEmptyFileLeavesTheDefaults) {
  const auto set = Parse("# nothing\n");
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->others, Base());
  EXPECT_TRUE(set->listed.empty());
}

TEST(LimitsFileTest, ATenantHasWhatItsTableSaysAndElseTheDefault) {
  const auto set = Parse(R"(
[default]
kv-bytes = "2KiB"
share = 2

[tenant.batch]
sessions = 5
share = 0.5
highest-priority = "low"

[tenant."with space"]
kv-bytes = "none"
layer-bytes = 0
streams = "none"
queued-bytes = "1M"
work-rate = 0.25
)");
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->others.kv_bytes, 2048);
  EXPECT_EQ(set->others.share, 2);
  EXPECT_EQ(set->others.sessions, 70);
  const TenantLimits& batch = set->Of("batch");
  EXPECT_EQ(batch.kv_bytes, 2048);
  EXPECT_EQ(batch.sessions, 5);
  EXPECT_EQ(batch.share, 0.5);
  EXPECT_EQ(batch.highest_priority, Priority::kLow);
  EXPECT_EQ(batch.work_rate, std::numeric_limits<double>::infinity());
  const TenantLimits& other = set->Of("with space");
  EXPECT_EQ(other.kv_bytes, TenantLimits::kNone);
  EXPECT_EQ(other.layer_bytes, 0);
  EXPECT_EQ(other.streams, TenantLimits::kNone);
  EXPECT_EQ(other.queued_bytes, std::int64_t{1} << 20);
  EXPECT_EQ(other.work_rate, 0.25);
  EXPECT_EQ(other.highest_priority, Priority::kHigh);
}

// [default] holds for a tenant also when it comes later in the file.
TEST(LimitsFileTest, TheOrderOfTablesDoesNotMatter) {
  const auto set = Parse("[tenant.a]\nshare = 3\n[default]\nsessions = 4\n");
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->Of("a").sessions, 4);
}

TEST(LimitsFileTest, WhatIsWrongIsNamedWithItsLine) {
  const std::string long_name(129, 'x');
  const struct {
    std::string text;
    std::string error;
  } kCases[] = {
      {"[default]\nkv-byte = 1\n",
       "limits.toml, line 2: default.'kv-byte' is no key of tenants' limits, did you mean "
       "kv-bytes"},
      {"[tenants.a]\n", "line 1: 'tenants' is no key of tenants' limits, did you mean tenant"},
      {"default = 3\n", "line 1: default is 3, expected a table"},
      {"tenant = 3\n", "line 1: tenant is 3, expected tables such as [tenant.NAME]"},
      {"[tenant]\na = 1\n", "line 2: tenant.'a' is 1, expected a table"},
      {"[tenant.a]\n\nkv-bytes = \"1GB\"\n", "line 3: tenant.'a'.kv-bytes is"},
      {"[default]\nkv-bytes = -1\n", "line 2: default.kv-bytes is -1, expected a whole number"},
      {"[default]\nkv-bytes = 1.5\n", "line 2: default.kv-bytes is 1.5"},
      {"[default]\nsessions = \"many\"\n", "line 2: default.sessions is"},
      {"[default]\nsessions = true\n", "expected a whole number of at least 0, or \"none\""},
      {"[default]\nwork-rate = 0\n", "line 2: default.work-rate is 0, expected seconds"},
      {"[default]\nwork-rate = nan\n", "line 2: default.work-rate"},
      {"[default]\nwork-rate = inf\n", "line 2: default.work-rate"},
      {"[default]\nshare = 0\n", "line 2: default.share is 0, expected a number from 0.001"},
      {"[default]\nshare = \"none\"\n", "line 2: default.share"},
      {"[default]\nhighest-priority = \"urgent\"\n", "expected \"high\", \"normal\" or \"low\""},
      {"[default]\nshare = 1\nshare = 2\n", "line 3: this is no TOML"},
      {"[tenant.a]\n[tenant.a]\n", "line 2: this is no TOML"},
      {"[default\n", "this is no TOML"},
      {"[tenant.\"\"]\n", "has 0 bytes, expected 1 to 128"},
      {"[tenant." + long_name + "]\n", "has 129 bytes, expected 1 to 128"},
      {"[tenant.\"a\\u0001\"]\n", "printable ASCII characters"},
  };
  for (const auto& c : kCases) {
    const auto set = Parse(c.text);
    ASSERT_EQ(set.status().code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(set.status().message()), HasSubstr("limits.toml, line")) << c.text;
    EXPECT_THAT(std::string(set.status().message()), HasSubstr(c.error)) << c.text;
  }
}

TEST(LimitsFileTest, AFileThatCannotBeReadIsNamed) {
  const auto missing = ReadLimitsFile("/nowhere/limits.toml", Base());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("/nowhere/limits.toml"));
  const auto folder = ReadLimitsFile(::testing::TempDir(), Base());
  EXPECT_EQ(folder.status().code(), absl::StatusCode::kNotFound);
}

TEST(LimitsFileTest, TheExampleOfTheDocumentsIsRight) {
  const auto set = ReadLimitsFile(ATTENTION_DEPLOY "/tenant-limits.toml", Base());
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->others.sessions, 200);
  EXPECT_EQ(set->Of("chat").share, 4);
  EXPECT_EQ(set->Of("nightly-evaluation").work_rate, 0.25);
  EXPECT_EQ(set->Of("team a").kv_bytes, TenantLimits::kNone);
}

TEST(LimitsFileTest, AFileIsReadFromItsPath) {
  const std::string path = ::testing::TempDir() + "/limits_file_test.toml";
  std::ofstream(path) << "[default]\nsessions = 1\n";
  const auto set = ReadLimitsFile(path, Base());
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->others.sessions, 1);
}

}  // namespace
}  // namespace attention::server
