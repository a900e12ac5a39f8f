// Who is at the other end of a connection.
#pragma once

#include <string>

namespace attention::server {

struct PeerName {
  // As limits count: the address without its port, or the user ("uid 1000") at a unix socket.
  std::string peer;
  // As gRPC names the connection, less brackets: "ipv4:127.0.0.1:7070"; "unix:" for any of those.
  std::string address;
};

// Both empty: there is nobody any more.
PeerName PeerNameOf(int fd);

}  // namespace attention::server
