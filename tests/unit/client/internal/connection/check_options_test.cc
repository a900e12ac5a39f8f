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

TEST(CheckOptionsTest, CallOptionsAreCheckedToo) {
  EXPECT_TRUE(internal::CheckOptions(CallOptions{}).ok());
  EXPECT_FALSE(internal::CheckOptions(CallOptions{.request_id = "a\nb"}).ok());
  EXPECT_FALSE(internal::CheckOptions(CallOptions{.retry_policy = RetryPolicy{.jitter = 2}}).ok());
}

}  // namespace
}  // namespace attention::client
