#include <gmock/gmock.h>

#include "attention/client/client.h"
#include "client/internal/connection/grpc_connection.h"

namespace attention::client {
namespace {

using ::testing::HasSubstr;

ClientOptions Good() {
  ClientOptions options;
  options.targets = {"localhost:1"};
  return options;
}

// Expects the options to be refused with a message that names `option`.
void ExpectRefused(const ClientOptions& options, const char* option) {
  const absl::Status status = Client::Connect(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << option;
  EXPECT_THAT(std::string(status.message()), HasSubstr(option));
}

TEST(CheckOptionsTest, AcceptsDefaultsAndBounds) {
  ClientOptions options = Good();
  EXPECT_TRUE(Client::Connect(options).ok());
  options.targets = {"dns:///localhost:1", "unix:///tmp/socket", "unix:socket", "[::1]:1"};
  EXPECT_TRUE(internal::CheckOptions(options).ok());
  options.num_channels = 64;
  options.max_message_bytes = (std::int64_t{1} << 31) - 1;
  options.retry_policy = RetryPolicy::None();
  options.default_timeout = absl::InfiniteDuration();
  EXPECT_TRUE(internal::CheckOptions(options).ok());
}

TEST(CheckOptionsTest, NamesTheOptionThatIsOutOfRange) {
  const auto with = [](auto change) {
    ClientOptions options = Good();
    change(options);
    return options;
  };
  ExpectRefused({}, "targets");
  ExpectRefused(with([](auto& o) { o.targets = {""}; }), "targets");
  ExpectRefused(with([](auto& o) { o.targets = {"http://localhost:7070"}; }),
                "targets: 'http://localhost:7070' is a URL of the scheme http, expected host:port");
  ExpectRefused(with([](auto& o) { o.tenant = ""; }), "tenant");
  ExpectRefused(with([](auto& o) { o.tenant = "a\nb"; }), "tenant");
  ExpectRefused(with([](auto& o) { o.default_timeout = absl::ZeroDuration(); }), "default_timeout");
  ExpectRefused(with([](auto& o) { o.max_message_bytes = 0; }), "max_message_bytes");
  ExpectRefused(with([](auto& o) { o.max_message_bytes = std::int64_t{1} << 31; }),
                "max_message_bytes");
  ExpectRefused(with([](auto& o) { o.num_channels = 0; }), "num_channels");
  ExpectRefused(with([](auto& o) { o.num_channels = 65; }), "num_channels");
  ExpectRefused(with([](auto& o) { o.keepalive_interval = absl::ZeroDuration(); }), "keepalive");
  ExpectRefused(with([](auto& o) { o.retry_policy.max_attempts = 0; }), "max_attempts");
  ExpectRefused(with([](auto& o) { o.retry_policy.initial_backoff = absl::Seconds(9); }),
                "initial_backoff");
  ExpectRefused(with([](auto& o) { o.retry_policy.multiplier = 0.5; }), "multiplier");
  ExpectRefused(with([](auto& o) { o.retry_policy.jitter = 1.5; }), "jitter");
}

TEST(CheckOptionsTest, MetadataFollowsGrpcsRulesAndTakesNoOtherOptionsPlace) {
  const auto with = [](const std::string& key, const std::string& value) {
    ClientOptions options = Good();
    options.metadata = {{"good-key_1.x", "good value"}, {key, value}};
    return options;
  };
  EXPECT_TRUE(internal::CheckOptions(with("x", "")).ok());
  EXPECT_TRUE(internal::CheckOptions(with("x-bin", "\n")).ok());
  EXPECT_TRUE(internal::CheckOptions(with("attention-priority", "high")).ok());
  ExpectRefused(with("", "x"), "metadata: a key is empty");
  ExpectRefused(with("X-Route", "x"), "byte 0 of the key 'X-Route' is not one of a-z");
  ExpectRefused(with(":path", "x"), "byte 0 of the key ':path'");
  ExpectRefused(with("a\nb", "x"), "byte 1 of the key");
  ExpectRefused(with("grpc-timeout", "1S"), "begins with grpc-");
  ExpectRefused(with("te", "trailers"), "gRPC itself sets the key 'te'");
  ExpectRefused(with("authorization", "x"), "'authorization' is set by the option token");
  ExpectRefused(with("attention-tenant", "x"), "'attention-tenant' is set by the option tenant");
  ExpectRefused(with("x-request-id", "x"), "is set by the option CallOptions::request_id");
  ExpectRefused(with("x-secret", "se\ncret"), "metadata: the value of 'x-secret'");
  ExpectRefused(with("x", " x"), "without spaces at the ends");
}

TEST(CheckOptionsTest, ATokenLeavesThisHostByTlsAlone) {
  const auto to = [](const std::string& target) {
    ClientOptions options;
    options.targets = {"127.0.0.1:1", target};
    options.token.value = "secret";
    return options;
  };
  for (const char* near : {"localhost:1", "[::1]:1", "unix:/run/s", "dns:///localhost:1"}) {
    EXPECT_TRUE(internal::CheckOptions(to(near)).ok()) << near;
  }
  for (const char* far : {"example.org:1", "192.0.2.1:1", "dns://9.9.9.9/localhost:1"}) {
    ExpectRefused(to(far), "token: it would be sent to '");
    ExpectRefused(to(far), far);
    ExpectRefused(to(far), "token.allow_unencrypted");
  }
  ClientOptions options = to("example.org:1");
  options.tls.emplace();
  EXPECT_TRUE(internal::CheckOptions(options).ok());
  options.tls.reset();
  options.token.allow_unencrypted = true;
  EXPECT_TRUE(internal::CheckOptions(options).ok());
}

TEST(CheckOptionsTest, NamesTheCredentialsThatAreWrong) {
  ClientOptions options = Good();
  options.token.value = "secret secret";
  ExpectRefused(options, "token.value: byte 6");
  EXPECT_EQ(Client::Connect(options).status().ToString().find("secret"), std::string::npos);
  options.token = {.file = "/no/such/token"};
  ExpectRefused(options, "token.file: cannot read '/no/such/token'");
  options.token = {};
  options.tls = TlsOptions{.ca_file = "/no/such.pem"};
  ExpectRefused(options, "tls.ca_file '/no/such.pem'");
}

TEST(CheckOptionsTest, CallOptionsAreCheckedToo) {
  EXPECT_TRUE(internal::CheckOptions(CallOptions{}).ok());
  EXPECT_FALSE(internal::CheckOptions(CallOptions{.request_id = "a\nb"}).ok());
  EXPECT_FALSE(internal::CheckOptions(CallOptions{.retry_policy = RetryPolicy{.jitter = 2}}).ok());
}

}  // namespace
}  // namespace attention::client
