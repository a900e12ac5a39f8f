#include "server/listener/probe_socket.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

struct Address {
  sockaddr_storage bytes{};
  socklen_t size = sizeof(bytes);

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&bytes); }
  std::string AsString() const { return {reinterpret_cast<const char*>(&bytes), size}; }
};

absl::Status Failed(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// The address at which to reach a socket that listens at `listening`; one that listens at all
// addresses is reached through loopback.
Address Destination(Address listening) {
  if (listening.bytes.ss_family == AF_INET) {
    auto& address = reinterpret_cast<sockaddr_in&>(listening.bytes);
    if (address.sin_addr.s_addr == htonl(INADDR_ANY)) {
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
  } else if (listening.bytes.ss_family == AF_INET6) {
    // Loopback of IPv4, which a machine has even where IPv6 is turned off for it.
    auto& address = reinterpret_cast<sockaddr_in6&>(listening.bytes);
    constexpr in6_addr kLoopback = {{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1}}};
    if (IN6_IS_ADDR_UNSPECIFIED(&address.sin6_addr)) address.sin6_addr = kLoopback;
  }
  return listening;
}

// A name of its own for the client's end, before it connects: the same address with another port,
// or one that the kernel makes up for a unix socket.
Address Source(Address destination) {
  if (destination.bytes.ss_family == AF_INET) {
    reinterpret_cast<sockaddr_in&>(destination.bytes).sin_port = 0;
  } else if (destination.bytes.ss_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6&>(destination.bytes).sin6_port = 0;
  } else {
    destination = Address();
    destination.bytes.ss_family = AF_UNIX;
    destination.size = sizeof(sa_family_t);
  }
  return destination;
}

}  // namespace

std::string SocketAddressOfPeer(int fd) {
  Address address;
  if (getpeername(fd, address.get(), &address.size) != 0) return "";
  return address.AsString();
}

absl::Status AwaitSocket(int fd, short events, absl::Time deadline) {
  for (;;) {
    const std::int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    pollfd polled = {fd, events, 0};
    const int count =
        poll(&polled, 1, static_cast<int>(std::clamp<std::int64_t>(left_ms, 0, 60'000)));
    if (count > 0) return absl::OkStatus();
    if (count == 0) return absl::DeadlineExceededError("no answer in time");
    if (errno != EINTR) return Failed("poll");
  }
}

absl::StatusOr<ProbeSocket> ProbeSocket::Connect(int listen_fd, absl::Time deadline,
                                                 ProbeAddresses& addresses) {
  Address listening;
  if (getsockname(listen_fd, listening.get(), &listening.size) != 0) return Failed("getsockname");
  Address to = Destination(listening);
  Address from = Source(to);
  ProbeSocket client(socket(to.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
                     addresses);
  if (client.fd_ < 0) return Failed("no socket can be opened");
  if (bind(client.fd_, from.get(), from.size) != 0) return Failed("no address can be had");
  from.size = sizeof(from.bytes);
  if (getsockname(client.fd_, from.get(), &from.size) != 0) return Failed("getsockname");
  client.address_ = from.AsString();
  addresses.Add(client.address_);
  if (connect(client.fd_, to.get(), to.size) == 0) return client;
  if (errno != EINPROGRESS) return Failed("cannot connect");
  ATTENTION_RETURN_IF_ERROR(AwaitSocket(client.fd_, POLLOUT, deadline));
  socklen_t size = sizeof(errno);
  int error = 0;
  getsockopt(client.fd_, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error == 0) return client;
  errno = error;
  return Failed("cannot connect");
}

ProbeSocket::ProbeSocket(ProbeSocket&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      addresses_(other.addresses_),
      address_(std::move(other.address_)) {
  other.address_.clear();
}

ProbeSocket::~ProbeSocket() {
  if (!address_.empty()) addresses_->Remove(address_);
  if (fd_ >= 0) close(fd_);
}

int ProbeSocket::Release() { return std::exchange(fd_, -1); }

}  // namespace attention::server
