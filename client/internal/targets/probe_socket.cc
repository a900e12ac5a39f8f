#include "client/internal/targets/probe_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/time/clock.h"

namespace attention::client::internal {

ProbeSocket::ProbeSocket(int family, int type)
    : fd_(socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {}

ProbeSocket::~ProbeSocket() {
  if (fd_ >= 0) close(fd_);
}

int ProbeSocket::Connect(const sockaddr* to, socklen_t size, absl::Time deadline) const {
  if (fd_ < 0) return errno;
  if (connect(fd_, to, size) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  if (!Await(POLLOUT, deadline)) return ETIMEDOUT;
  int error = 0;
  socklen_t length = sizeof(error);
  getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

void ProbeSocket::Send(absl::string_view bytes) const {
  // So little fits into the socket's buffer.
  (void)send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

std::string ProbeSocket::Receive(absl::Time deadline) const {
  if (!Await(POLLIN, deadline)) return "";
  char buffer[4096];
  const ssize_t size = recv(fd_, buffer, sizeof(buffer), 0);
  return size > 0 ? std::string(buffer, static_cast<std::size_t>(size)) : "";
}

bool ProbeSocket::Await(short events, absl::Time deadline) const {
  const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
  pollfd polled{fd_, events, 0};
  return poll(&polled, 1, static_cast<int>(absl::ToInt64Milliseconds(left))) > 0;
}

}  // namespace attention::client::internal
