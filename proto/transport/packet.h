// Packets of a unix socket, with a file descriptor or without. Header only.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <cstring>
#include <span>
#include <string>

namespace attention::transport {

// Sends as sendmsg does. A negative `passed_fd` is none.
inline ssize_t SendPacket(int socket, std::string bytes, int passed_fd, int flags) {
  iovec buffer{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &buffer;
  message.msg_iovlen = 1;
  if (passed_fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &passed_fd, sizeof(int));
  }
  return sendmsg(socket, &message, MSG_NOSIGNAL | flags);
}

// Receives as recvmsg does. `passed_fd` becomes the descriptor that came with the packet, and is
// then the caller's; it is left alone if none did.
inline ssize_t ReceivePacket(int socket, std::span<char> bytes, int* passed_fd, int flags) {
  iovec buffer{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &buffer;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | flags);
  if (size < 0) return size;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    std::memcpy(passed_fd, CMSG_DATA(header), sizeof(int));
  }
  return size;
}

}  // namespace attention::transport
