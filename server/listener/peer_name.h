// The names of the peer at the other end of a connection.
#pragma once

#include <string>

namespace attention::server {

struct PeerName {
  // The peer as limits count it: the address without its port, or the user ("uid 1000") at a unix
  // socket.
  std::string peer;
  // The connection as gRPC names it, less brackets: "ipv4:127.0.0.1:7070"; "unix:" for any of
  // those.
  std::string address;
};

// Both names are empty when the connection has no peer any more.
PeerName PeerNameOf(int fd);

}  // namespace attention::server
