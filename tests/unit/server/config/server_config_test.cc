#include "server/config/server_config.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <fstream>

namespace attention::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ParsedCommandLine Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "attention-server");
  return ParseCommandLine(static_cast<int>(arguments.size()), arguments.data());
}

TEST(ServerConfigTest, DefaultsListenOnLoopbackOnly) {
  const ParsedCommandLine parsed = Parse({});
  ASSERT_FALSE(parsed.is_exit) << parsed.text;
  EXPECT_THAT(parsed.config.listen, ElementsAre("127.0.0.1:7070"));
  EXPECT_EQ(parsed.config.admin_listen, "127.0.0.1:7071");
}

TEST(ServerConfigTest, FlagsSetValues) {
  const ParsedCommandLine parsed = Parse({"--listen", "127.0.0.1:0,unix:/tmp/a.sock", "--threads",
                                          "3", "--session-ttl", "90s", "--kv-page-size=32"});
  ASSERT_FALSE(parsed.is_exit) << parsed.text;
  EXPECT_THAT(parsed.config.listen, ElementsAre("127.0.0.1:0", "unix:/tmp/a.sock"));
  EXPECT_EQ(parsed.config.threads, 3);
  EXPECT_EQ(parsed.config.session_ttl, absl::Seconds(90));
  EXPECT_EQ(parsed.config.kv_page_size, 32);
}

TEST(ServerConfigTest, GpusAreOrdinals) {
  EXPECT_THAT(Parse({}).config.cuda_devices, ::testing::IsEmpty());
  EXPECT_THAT(Parse({"--cuda-devices", "2,0"}).config.cuda_devices, ElementsAre(2, 0));
}

TEST(ServerConfigTest, FlagsWinOverTheEnvironmentWhichWinsOverTheFile) {
  const std::string path = ::testing::TempDir() + "/server_config_test.toml";
  std::ofstream(path) << "threads = 2\nmax-sessions = 20\nworker-name = \"file\"\n"
                      << "session-ttl = \"2m\"\n";
  setenv("ATTENTION_MAX_SESSIONS", "30", 1);
  setenv("ATTENTION_WORKER_NAME", "environment", 1);
  const ParsedCommandLine parsed = Parse({"--config", path.c_str(), "--worker-name", "flag"});
  unsetenv("ATTENTION_MAX_SESSIONS");
  unsetenv("ATTENTION_WORKER_NAME");
  ASSERT_FALSE(parsed.is_exit) << parsed.text;
  EXPECT_EQ(parsed.config.threads, 2);
  EXPECT_EQ(parsed.config.session_ttl, absl::Minutes(2));
  EXPECT_EQ(parsed.config.max_sessions, 30);
  EXPECT_EQ(parsed.config.worker_name, "flag");
}

TEST(ServerConfigTest, PrintedDefaultsCanBeReadBack) {
  const std::string path = ::testing::TempDir() + "/printed_defaults.toml";
  std::ofstream(path) << Parse({"--print-config"}).text;
  const ParsedCommandLine read = Parse({"--config", path.c_str()});
  ASSERT_FALSE(read.is_exit) << read.text;
  EXPECT_THAT(read.config.listen, ElementsAre("127.0.0.1:7070"));
}

TEST(ServerConfigTest, PrintConfigShowsEveryKeyAndCanBeReadBack) {
  const ParsedCommandLine printed = Parse({"--print-config", "--threads", "5", "--session-ttl",
                                           "7m", "--listen", "127.0.0.1:1,unix:/tmp/a.sock"});
  EXPECT_TRUE(printed.is_exit);
  EXPECT_EQ(printed.exit_code, 0);
  const std::string path = ::testing::TempDir() + "/printed_config.toml";
  std::ofstream(path) << printed.text;
  const ParsedCommandLine read = Parse({"--config", path.c_str()});
  ASSERT_FALSE(read.is_exit) << read.text;
  EXPECT_EQ(read.config.threads, 5);
  EXPECT_EQ(read.config.session_ttl, absl::Minutes(7));
  EXPECT_THAT(read.config.listen, ElementsAre("127.0.0.1:1", "unix:/tmp/a.sock"));
}

struct BadFlag {
  const char* flag;
  const char* value;
  const char* expected;
};
class BadFlagTest : public ::testing::TestWithParam<BadFlag> {};

TEST_P(BadFlagTest, IsRefusedWithItsNameAndWhatWasExpected) {
  const ParsedCommandLine parsed = Parse({GetParam().flag, GetParam().value});
  EXPECT_TRUE(parsed.is_exit);
  EXPECT_EQ(parsed.exit_code, 2);
  EXPECT_THAT(parsed.text, HasSubstr(GetParam().flag));
  EXPECT_THAT(parsed.text, HasSubstr(GetParam().expected));
}

INSTANTIATE_TEST_SUITE_P(
    Values, BadFlagTest,
    ::testing::Values(BadFlag{"--kv-page-size", "17", "a multiple of 16"},
                      BadFlag{"--kv-page-size", "0", "a multiple of 16"},
                      BadFlag{"--session-ttl", "soon", "a positive duration"},
                      BadFlag{"--session-ttl", "-5s", "a positive duration"},
                      BadFlag{"--listen", "127.0.0.1:99999", "a port of 0 to 65535"},
                      BadFlag{"--listen", "127.0.0.1", "expected host:port"},
                      BadFlag{"--listen", "127.0.0.1:1,", "expected host:port"},
                      BadFlag{"--admin-listen", "unix:/tmp/x", "expected host:port"},
                      BadFlag{"--cuda-devices", "0,x", "ordinals from 0"},
                      BadFlag{"--cuda-devices", "1,1", "each GPU once"},
                      BadFlag{"--backend", "abacus", "cpu"}, BadFlag{"--log-level", "loud", "info"},
                      BadFlag{"--threads", "-1", "0"}, BadFlag{"--max-batch-requests", "0", "1"},
                      BadFlag{"--max-message-bytes", "1", "1024"}));

TEST(ServerConfigTest, AnUnknownFlagIsRefused) {
  const ParsedCommandLine parsed = Parse({"--frobnicate"});
  EXPECT_EQ(parsed.exit_code, 2);
  EXPECT_THAT(parsed.text, HasSubstr("--frobnicate"));
}

TEST(ServerConfigTest, AnUnknownKeyOfTheFileIsRefused) {
  const std::string path = ::testing::TempDir() + "/unknown_key.toml";
  std::ofstream(path) << "treads = 2\n";
  const ParsedCommandLine parsed = Parse({"--config", path.c_str()});
  EXPECT_TRUE(parsed.is_exit);
  EXPECT_THAT(parsed.text, HasSubstr("treads"));
}

}  // namespace
}  // namespace attention::server
