#include "client/internal/credentials/target_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstddef>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attention::client::internal {
namespace {

// The port that gRPC takes when there is none.
constexpr char kDefaultPort[] = "443";

// "host:port", "[address]:port", or either without a port.
void SplitHostPort(absl::string_view address, TargetAddress* result) {
  result->host = std::string(address);
  result->port = kDefaultPort;
  const bool has_brackets = absl::StartsWith(address, "[");
  const std::size_t end = has_brackets ? address.find(']') : address.rfind(':');
  if (has_brackets && end != absl::string_view::npos) {
    absl::string_view port = address.substr(end + 1);
    absl::ConsumePrefix(&port, ":");
    result->host = std::string(address.substr(1, end - 1));
    if (!port.empty()) result->port = std::string(port);
    return;
  }
  const bool has_port = end != absl::string_view::npos && address.find(':') == end;
  if (!has_port) return;
  result->host = std::string(address.substr(0, end));
  result->port = std::string(address.substr(end + 1));
}

bool IsLoopback(const std::string& host) {
  if (host == "localhost") return true;
  in_addr v4{};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6{};
  return inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

}  // namespace

TargetAddress ParseTarget(const std::string& target) {
  TargetAddress result;
  absl::string_view rest = target;
  if (absl::ConsumePrefix(&rest, "unix:")) {
    absl::ConsumePrefix(&rest, "//");
    result.is_unix = true;
    result.path = std::string(rest);
    return result;
  }
  for (const char* scheme : {"ipv4:", "ipv6:", "dns:"}) {
    if (!absl::ConsumePrefix(&rest, scheme)) continue;
    if (absl::ConsumePrefix(&rest, "//")) {
      const std::size_t end = std::min(rest.find('/'), rest.size());
      result.resolver = std::string(rest.substr(0, end));
      rest = rest.substr(end);
    }
    absl::ConsumePrefix(&rest, "/");
    break;
  }
  SplitHostPort(rest, &result);
  return result;
}

bool IsOnThisHost(const std::string& target) {
  const TargetAddress address = ParseTarget(target);
  // Another name server may know another localhost.
  return address.is_unix || (address.resolver.empty() && IsLoopback(address.host));
}

}  // namespace attention::client::internal
