#include "server/listener/listener.h"

#include <gmock/gmock.h>

namespace attention::server {
namespace {

using ::testing::HasSubstr;

TEST(ListenerTest, AnAddressAloneHasNoSettings) {
  const auto tcp = ParseListener("127.0.0.1:7070");
  ASSERT_TRUE(tcp.ok()) << tcp.status();
  EXPECT_EQ(tcp->address, "127.0.0.1:7070");
  EXPECT_FALSE(tcp->is_unix());
  EXPECT_FALSE(tcp->has_tls());
  const auto local = ParseListener("unix:/run/a.sock");
  ASSERT_TRUE(local.ok()) << local.status();
  EXPECT_TRUE(local->is_unix());
  EXPECT_EQ(local->socket_path(), "/run/a.sock");
  EXPECT_FALSE(local->mode.has_value());
}

TEST(ListenerTest, SettingsBelongToTheirAddress) {
  const auto local = ParseListener("unix:/run/a.sock?mode=0660");
  ASSERT_TRUE(local.ok()) << local.status();
  EXPECT_EQ(local->mode, 0660);
  EXPECT_EQ(local->socket_path(), "/run/a.sock");
  const auto tls = ParseListener("[::]:1?tls-cert=c.pem&tls-key=k.pem&tls-client-ca=a=b.pem");
  ASSERT_TRUE(tls.ok()) << tls.status();
  EXPECT_EQ(tls->address, "[::]:1");
  EXPECT_EQ(tls->tls_cert, "c.pem");
  EXPECT_EQ(tls->tls_key, "k.pem");
  EXPECT_EQ(tls->tls_client_ca, "a=b.pem");
}

struct BadListener {
  const char* text;
  const char* expected;
};

TEST(ListenerTest, WhatIsWrongIsNamed) {
  const BadListener cases[] = {
      {"", "expected host:port"},
      {":1", "expected host:port"},
      {"host", "expected host:port"},
      {"host:65536", "a port of 0 to 65535"},
      {"unix:", "unix:path"},
      {"host:1?", "the keys mode, tls-cert"},
      {"host:1?colour=red", "the keys mode, tls-cert"},
      {"host:1?mode=0600", "mode only with unix:path"},
      {"unix:/a?mode=rw", "a mode such as 0660"},
      {"unix:/a?mode=1777", "a mode such as 0660"},
      {"unix:/a?tls-cert=c&tls-key=k", "tls-cert only with host:port"},
      {"host:1?tls-cert=", "a file as tls-cert"},
      {"host:1?tls-cert=c", "tls-cert and tls-key, or neither"},
      {"host:1?tls-client-ca=a", "tls-client-ca only with"},
  };
  for (const BadListener& bad : cases) {
    const absl::Status status = ParseListener(bad.text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.expected));
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.text));
  }
}

}  // namespace
}  // namespace attention::server
