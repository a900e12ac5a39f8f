// The parts of a target's address, as gRPC reads them.
#pragma once

#include <string>

namespace attention::client::internal {

struct TargetAddress {
  bool is_unix = false;
  std::string path = {};  // of a unix socket
  std::string host = {};  // without brackets
  std::string port = {};
  std::string resolver = {};  // the name server to ask: dns://resolver/host:port
};

// "host:port", "[::1]:port", "dns:///host:port", "ipv4:host:port", "unix:/path".
TargetAddress ParseTarget(const std::string& target);

// True if no byte for the target leaves this host: a unix socket, a loopback address, "localhost".
bool IsOnThisHost(const std::string& target);

}  // namespace attention::client::internal
