// The floor: the same bytes over a bare socket, a thread for each connection. A request is its
// length (eight bytes), then its bytes, whose first eight are the answer's length, as in the echo
// over gRPC; an answer is bytes alone.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/benchmark/transport/echo_server.h"

namespace attention::bench {
namespace {

bool ReadAll(int fd, char* bytes, std::size_t size) {
  while (size > 0) {
    const ssize_t count = read(fd, bytes, size);
    if (count <= 0) return false;
    bytes += count;
    size -= static_cast<std::size_t>(count);
  }
  return true;
}

bool WriteAll(int fd, const char* bytes, std::size_t size) {
  while (size > 0) {
    const ssize_t count = write(fd, bytes, size);
    if (count <= 0) return false;
    bytes += count;
    size -= static_cast<std::size_t>(count);
  }
  return true;
}

void SetBuffers(int fd, int bytes) {
  if (bytes <= 0) return;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

void Serve(int fd) {
  std::vector<char> bytes(kMaxAnswerBytes, 'a');
  std::uint64_t request_bytes = 0;
  while (ReadAll(fd, reinterpret_cast<char*>(&request_bytes), sizeof(request_bytes)) &&
         request_bytes <= bytes.size() && ReadAll(fd, bytes.data(), request_bytes)) {
    AnswerBytes answer_bytes = 0;
    std::memcpy(&answer_bytes, bytes.data(), sizeof(answer_bytes));
    if (answer_bytes == kEchoAll) answer_bytes = request_bytes;
    if (!WriteAll(fd, bytes.data(), std::min<std::size_t>(answer_bytes, bytes.size()))) break;
  }
  close(fd);
}

void Accept(int listener, int socket_buffer_bytes) {
  for (;;) {
    const int fd = accept(listener, nullptr, nullptr);
    if (fd < 0) return;
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // fails, in vain, on unix sockets
    SetBuffers(fd, socket_buffer_bytes);
    std::thread(Serve, fd).detach();
  }
}

int ListenTcp(int* port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(fd, 16) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return -1;
  }
  *port = ntohs(address.sin_port);
  return fd;
}

int ListenUnix(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(fd, 16) != 0) {
    return -1;
  }
  return fd;
}

}  // namespace

int ServeSockets(const EchoSettings& settings, const std::string& unix_path,
                 void (*on_started)(int port)) {
  int port = 0;
  const int tcp = ListenTcp(&port);
  const int unix_socket = ListenUnix(unix_path);
  if (tcp < 0 || unix_socket < 0) return 1;
  // TCP sizes its own buffers, see socket_buffers.cc.
  std::thread(Accept, tcp, 0).detach();
  std::thread(Accept, unix_socket, settings.channel.socket_buffer_bytes).detach();
  on_started(port);
  _exit(0);  // the threads wait in system calls
}

}  // namespace attention::bench
