#include "client/internal/credentials/target_address.h"

#include <gmock/gmock.h>

namespace attention::client::internal {
namespace {

TEST(TargetAddressTest, ReadsWhatGrpcReads) {
  EXPECT_EQ(ParseTarget("example.org:7070").host, "example.org");
  EXPECT_EQ(ParseTarget("example.org:7070").port, "7070");
  EXPECT_EQ(ParseTarget("example.org").port, "443");
  EXPECT_EQ(ParseTarget("[::1]:7070").host, "::1");
  EXPECT_EQ(ParseTarget("[::1]:7070").port, "7070");
  EXPECT_EQ(ParseTarget("::1").host, "::1");
  EXPECT_EQ(ParseTarget("dns:///example.org:7070").host, "example.org");
  EXPECT_EQ(ParseTarget("dns://9.9.9.9/example.org:7070").host, "example.org");
  EXPECT_EQ(ParseTarget("dns://9.9.9.9/example.org:7070").resolver, "9.9.9.9");
  EXPECT_EQ(ParseTarget("ipv4:192.0.2.1:7070").host, "192.0.2.1");
  EXPECT_TRUE(ParseTarget("unix:/run/s").is_unix);
  EXPECT_EQ(ParseTarget("unix:/run/s").path, "/run/s");
  EXPECT_EQ(ParseTarget("unix:///run/s").path, "/run/s");
}

TEST(TargetAddressTest, SaysWhatStaysOnThisHost) {
  for (const char* near : {"localhost:7070", "127.0.0.1:7070", "127.8.9.1:1", "[::1]:7070",
                           "dns:///localhost:7070", "ipv4:127.0.0.1:7070", "ipv6:[::1]:7070",
                           "unix:/run/s", "unix:///run/s", "unix:relative"}) {
    EXPECT_TRUE(IsOnThisHost(near)) << near;
  }
  for (const char* far :
       {"example.org:7070", "192.0.2.1:7070", "0.0.0.0:7070", "[::]:7070", "[fe80::1]:7070",
        "localhost.example.org:7070", "127.0.0.1.example.org:7070", "dns://9.9.9.9/localhost:7070",
        "ipv4:127.0.0.1:7070,192.0.2.1:7070", "localhost@example.org:7070",
        "dns:///127.0.0.1:7070,example.org:7070", "xds:///localhost:7070", "128.0.0.1:7070", ""}) {
    EXPECT_FALSE(IsOnThisHost(far)) << far;
  }
}

}  // namespace
}  // namespace attention::client::internal
