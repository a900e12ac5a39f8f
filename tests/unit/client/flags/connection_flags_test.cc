#include "client/flags/connection_flags.h"

#include <gmock/gmock.h>

#include <string>
#include <utility>
#include <vector>

namespace attention::client {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

// The options of a program that is started with these arguments.
std::optional<ClientOptions> Parse(std::vector<std::string> arguments, int* exit_code = nullptr) {
  std::vector<char*> argv;
  arguments.insert(arguments.begin(), "program");
  for (std::string& argument : arguments) argv.push_back(argument.data());
  int ignored = 0;
  return ParseConnection(static_cast<int>(argv.size()), argv.data(), "program", "A program",
                         exit_code != nullptr ? exit_code : &ignored);
}

TEST(ConnectionFlagsTest, WithoutAnyAConnectionIsPlain) {
  const auto options = Parse({});
  ASSERT_TRUE(options.has_value());
  EXPECT_THAT(options->targets, ElementsAre("127.0.0.1:7070"));
  EXPECT_FALSE(options->tls.has_value());
  EXPECT_FALSE(options->token.is_set());
  EXPECT_FALSE(options->tenant.has_value());
}

TEST(ConnectionFlagsTest, EveryFlagSetsItsOption) {
  const auto options = Parse({"--target",   "b:1",
                              "--tls",      "--tls-ca",
                              "ca",         "--tls-cert",
                              "cert",       "--tls-key",
                              "key",        "--tls-server-name",
                              "name",       "--token-file",
                              "token",      "--allow-unencrypted-token",
                              "--tenant",   "acme",
                              "--metadata", "a=b",
                              "--metadata", "c=d=e"});
  ASSERT_TRUE(options.has_value());
  EXPECT_THAT(options->targets, ElementsAre("b:1"));
  EXPECT_EQ(options->tls->ca_file, "ca");
  EXPECT_EQ(options->tls->certificate_file, "cert");
  EXPECT_EQ(options->tls->key_file, "key");
  EXPECT_EQ(options->tls->server_name, "name");
  EXPECT_EQ(options->token.file, "token");
  EXPECT_TRUE(options->token.allow_unencrypted);
  EXPECT_EQ(options->tenant, "acme");
  EXPECT_THAT(options->metadata, ElementsAre(Pair("a", "b"), Pair("c", "d=e")));
}

TEST(ConnectionFlagsTest, AnyFlagOfTlsTurnsItOn) {
  for (const char* flag : {"--tls-ca", "--tls-cert", "--tls-key", "--tls-server-name"}) {
    EXPECT_TRUE(Parse({flag, "x"})->tls.has_value()) << flag;
  }
  EXPECT_TRUE(Parse({"--tls"})->tls.has_value());
}

TEST(ConnectionFlagsTest, HelpEndsAProgramWell) {
  int exit_code = -1;
  EXPECT_FALSE(Parse({"--help"}, &exit_code).has_value());
  EXPECT_EQ(exit_code, 0);
}

TEST(ConnectionFlagsTest, AMistakeEndsAProgramAndATokenIsNoFlag) {
  for (const std::vector<std::string>& mistake :
       std::vector<std::vector<std::string>>{{"--metadata", "x"}, {"--token", "x"}, {"--tls-ca"}}) {
    int exit_code = -1;
    EXPECT_FALSE(Parse(mistake, &exit_code).has_value()) << mistake[0];
    EXPECT_EQ(exit_code, 2) << mistake[0];
  }
}

}  // namespace
}  // namespace attention::client
