#include "server/listener/peer_name.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

PeerName OfIp(int family, const void* ip, in_port_t port) {
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(family, ip, text, sizeof(text));
  return {text, absl::StrCat(family == AF_INET ? "ipv4:" : "ipv6:", text, ":", ntohs(port))};
}

}  // namespace

PeerName PeerNameOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
  if (address.ss_family == AF_UNIX) {
    ucred user{};
    socklen_t user_size = sizeof(user);
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &user, &user_size);
    return {absl::StrCat("uid ", user.uid), "unix:"};
  }
  if (address.ss_family == AF_INET) {
    const auto& ip = reinterpret_cast<const sockaddr_in&>(address);
    return OfIp(AF_INET, &ip.sin_addr, ip.sin_port);
  }
  const auto& ip = reinterpret_cast<const sockaddr_in6&>(address);
  if (IN6_IS_ADDR_V4MAPPED(&ip.sin6_addr)) {
    return OfIp(AF_INET, &ip.sin6_addr.s6_addr[12], ip.sin6_port);
  }
  return OfIp(AF_INET6, &ip.sin6_addr, ip.sin6_port);
}

}  // namespace attention::server
