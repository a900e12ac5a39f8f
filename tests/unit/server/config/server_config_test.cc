#include "server/config/server_config.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <fstream>

namespace attention::server {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

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
  std::ofstream(path) << "threads = 2\nmax-sessions = 20\nserver-name = \"file\"\n"
                      << "session-ttl = \"2m\"\n";
  setenv("ATTENTION_MAX_SESSIONS", "30", 1);
  setenv("ATTENTION_SERVER_NAME", "environment", 1);
  const ParsedCommandLine parsed = Parse({"--config", path.c_str(), "--server-name", "flag"});
  unsetenv("ATTENTION_MAX_SESSIONS");
  unsetenv("ATTENTION_SERVER_NAME");
  ASSERT_FALSE(parsed.is_exit) << parsed.text;
  EXPECT_EQ(parsed.config.threads, 2);
  EXPECT_EQ(parsed.config.session_ttl, absl::Minutes(2));
  EXPECT_EQ(parsed.config.max_sessions, 30);
  EXPECT_EQ(parsed.config.server_name, "flag");
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
                      BadFlag{"--session-ttl", "inf", "a positive duration"},
                      BadFlag{"--drain-delay", "-1s", "a duration such as"},
                      BadFlag{"--listen", "127.0.0.1:99999", "a port of 0 to 65535"},
                      BadFlag{"--listen", "127.0.0.1", "expected host:port"},
                      BadFlag{"--listen", "127.0.0.1:1,", "expected host:port"},
                      BadFlag{"--admin-listen", "unix:/tmp/x", "expected host:port"},
                      BadFlag{"--cuda-devices", "0,x", "ordinals from 0"},
                      BadFlag{"--cuda-devices", "1,1", "each GPU once"},
                      BadFlag{"--backend", "abacus", "cpu"}, BadFlag{"--log-level", "loud", "info"},
                      BadFlag{"--threads", "-1", "0"}, BadFlag{"--max-batch-requests", "0", "1"},
                      BadFlag{"--max-sessions", "2GiB", "a whole number of at least 0"},
                      BadFlag{"--kv-capacity-bytes", "2GB", "such as 1073741824, 512MiB"},
                      BadFlag{"--kv-capacity-bytes", "1.5GiB", "a whole number of bytes"},
                      BadFlag{"--kv-capacity-bytes", "-1", "a whole number of bytes"},
                      BadFlag{"--kv-capacity-bytes", "9000000T", "a whole number of bytes"},
                      BadFlag{"--max-stream-bytes", "0", "at least 1"},
                      BadFlag{"--max-message-bytes", "1", "1024"}));

TEST(ServerConfigTest, AnUnknownFlagIsRefused) {
  const ParsedCommandLine parsed = Parse({"--frobnicate"});
  EXPECT_EQ(parsed.exit_code, 2);
  EXPECT_THAT(parsed.text, HasSubstr("--frobnicate"));
}

// The file's text, parsed as the configuration.
ParsedCommandLine ParseFile(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/server_config_file.toml";
  std::ofstream(path) << text;
  return Parse({"--config", path.c_str()});
}

TEST(ServerConfigTest, AnUnknownKeyOfTheFileIsRefusedWithItsLineAndTheNearestKey) {
  const ParsedCommandLine parsed = ParseFile("# cores\ntreads = 2\n");
  EXPECT_EQ(parsed.exit_code, 2);
  EXPECT_THAT(parsed.text, AllOf(HasSubstr("server_config_file.toml, line 2"), HasSubstr("treads"),
                                 HasSubstr("did you mean threads")));
}

TEST(ServerConfigTest, AValueOfTheFileIsRefusedWithItsLine) {
  const ParsedCommandLine parsed = ParseFile("threads = 2\n\nkv-page-size = 17\n");
  EXPECT_EQ(parsed.exit_code, 2);
  EXPECT_THAT(parsed.text, AllOf(HasSubstr("--kv-page-size: is '17'"), HasSubstr("line 3")));
  EXPECT_THAT(ParseFile("threads = { a = 1 }\n").text,
              AllOf(HasSubstr("line 1"), HasSubstr("threads is no string, number or list")));
}

TEST(ServerConfigTest, AFileThatIsNoTomlIsRefusedAsSuchWithItsLine) {
  const ParsedCommandLine parsed = ParseFile("threads = 2\nsession-ttl = 2m\n");
  EXPECT_EQ(parsed.exit_code, 2);
  EXPECT_THAT(parsed.text, AllOf(HasSubstr("line 2"), HasSubstr("this is no TOML")));
  EXPECT_THAT(parsed.text, Not(HasSubstr("INI")));
  EXPECT_THAT(ParseFile("threads = 1\nthreads = 2\n").text,
              AllOf(HasSubstr("line 2"), HasSubstr("threads")));
}

TEST(ServerConfigTest, AListOfTheFileMayBeOne) {
  const ParsedCommandLine parsed = ParseFile(R"(
listen = ["127.0.0.1:0", "unix:/tmp/a.sock"]
cuda-devices = [2, 0]
long-work-share = 0.5
)");
  ASSERT_FALSE(parsed.is_exit) << parsed.text;
  EXPECT_THAT(parsed.config.listen, ElementsAre("127.0.0.1:0", "unix:/tmp/a.sock"));
  EXPECT_THAT(parsed.config.cuda_devices, ElementsAre(2, 0));
  EXPECT_EQ(parsed.config.long_work_share, 0.5);
}

TEST(ServerConfigTest, BytesMayHaveAUnitWhereverTheyAreSet) {
  EXPECT_EQ(Parse({"--kv-capacity-bytes", "2GiB"}).config.kv_capacity_bytes, 2147483648);
  EXPECT_EQ(
      ParseFile("max-queued-bytes = \"64M\"\nmax-message-bytes = 4096\n").config.max_queued_bytes,
      67108864);
  setenv("ATTENTION_LAYER_CAPACITY_BYTES", "3Ki", 1);
  EXPECT_EQ(Parse({}).config.layer_capacity_bytes, 3072);
  unsetenv("ATTENTION_LAYER_CAPACITY_BYTES");
}

TEST(ServerConfigTest, PrintedBytesCanBeRead) {
  const std::string text = Parse({"--print-config"}).text;
  EXPECT_THAT(text, HasSubstr("max-stream-bytes=\"64MiB\""));
}

TEST(ServerConfigTest, AVariableWhoseNameIsNearlyThatOfAKeyIsRefused) {
  setenv("ATTENTION_KV_PAGE_SISE", "32", 1);
  const ParsedCommandLine parsed = Parse({});
  unsetenv("ATTENTION_KV_PAGE_SISE");
  EXPECT_EQ(parsed.exit_code, 2);
  EXPECT_THAT(parsed.text, AllOf(HasSubstr("ATTENTION_KV_PAGE_SISE"),
                                 HasSubstr("did you mean ATTENTION_KV_PAGE_SIZE")));
}

// A cluster sets them for each service; one called "attention" must not keep the server from
// starting.
TEST(ServerConfigTest, OtherVariablesOfThatPrefixAreToldOf) {
  setenv("ATTENTION_SERVICE_HOST", "192.0.2.1", 1);
  const ParsedCommandLine parsed = Parse({});
  unsetenv("ATTENTION_SERVICE_HOST");
  ASSERT_FALSE(parsed.is_exit) << parsed.text;
  EXPECT_THAT(parsed.warnings, Contains(HasSubstr("ATTENTION_SERVICE_HOST")));
}

}  // namespace
}  // namespace attention::server
