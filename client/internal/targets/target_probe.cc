#include "client/internal/targets/target_probe.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace attention::client::internal {
namespace {

// The port that gRPC takes when there is none.
constexpr char kDefaultPort[] = "443";

struct HostPort {
  std::string host;
  std::string port;
};

HostPort Split(absl::string_view address) {
  const bool has_brackets = absl::StartsWith(address, "[");
  const std::size_t end = has_brackets ? address.find(']') : address.rfind(':');
  if (has_brackets && end != absl::string_view::npos) {
    absl::string_view port = address.substr(end + 1);
    absl::ConsumePrefix(&port, ":");
    return {std::string(address.substr(1, end - 1)),
            port.empty() ? kDefaultPort : std::string(port)};
  }
  const bool has_port = end != absl::string_view::npos && address.find(':') == end;
  if (!has_port) return {std::string(address), kDefaultPort};
  return {std::string(address.substr(0, end)), std::string(address.substr(end + 1))};
}

class Socket {
 public:
  Socket(int family, int type) : fd_(socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  // 0, or why not as an errno.
  int Connect(const sockaddr* to, socklen_t size, absl::Time deadline) const {
    if (fd_ < 0) return errno;
    if (connect(fd_, to, size) == 0) return 0;
    if (errno != EINPROGRESS) return errno;
    if (!Await(POLLOUT, deadline)) return ETIMEDOUT;
    int error = 0;
    socklen_t length = sizeof(error);
    getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
  }

  // The first bytes of the answer; empty when there is none.
  std::string Ask(const std::string& bytes, absl::Time deadline) const {
    constexpr std::size_t kEnough = 9;
    (void)send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    std::string answer;
    char buffer[64];
    while (answer.size() < kEnough && Await(POLLIN, deadline)) {
      const ssize_t size = recv(fd_, buffer, sizeof(buffer), 0);
      if (size <= 0) break;
      answer.append(buffer, static_cast<std::size_t>(size));
    }
    return answer;
  }

 private:
  bool Await(short events, absl::Time deadline) const {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    pollfd polled{fd_, events, 0};
    return poll(&polled, 1, static_cast<int>(absl::ToInt64Milliseconds(left))) > 0;
  }

  const int fd_;
};

struct Resolved {
  ~Resolved() {
    if (list != nullptr) freeaddrinfo(list);
  }
  absl::Mutex mutex;
  bool is_done ABSL_GUARDED_BY(mutex) = false;
  int error ABSL_GUARDED_BY(mutex) = 0;
  addrinfo* list ABSL_GUARDED_BY(mutex) = nullptr;
};

// The system's resolver cannot be interrupted, so a thread of its own waits for it, and is left to
// itself when time is up.
std::shared_ptr<Resolved> Resolve(const HostPort& to, absl::Time deadline) {
  auto resolved = std::make_shared<Resolved>();
  std::thread([resolved, to] {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    const int error = getaddrinfo(to.host.c_str(), to.port.c_str(), &hints, &list);
    absl::MutexLock lock(&resolved->mutex);
    resolved->is_done = true;
    resolved->error = error;
    resolved->list = list;
  }).detach();
  absl::MutexLock lock(&resolved->mutex);
  resolved->mutex.AwaitWithDeadline(absl::Condition(&resolved->is_done), deadline);
  return resolved;
}

// The preface of HTTP/2 and an empty SETTINGS frame: what a gRPC client sends first.
std::string Http2Hello() {
  return absl::StrCat("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                      absl::string_view("\0\0\0\x04\0\0\0\0\0", 9));
}

// A ClientHello that servers accept, as some hang up on others without a word (gRPC's do).
std::string TlsHello() {
  constexpr auto kBytes = [](const auto& literal) {
    return std::string(literal, sizeof(literal) - 1);
  };
  const std::string extensions =
      kBytes("\x00\x0a\x00\x06\x00\x04\x00\x1d\x00\x17") +          // X25519, secp256r1
      kBytes("\x00\x0d\x00\x08\x00\x06\x04\x03\x08\x04\x04\x01") +  // ECDSA, RSA-PSS, RSA
      kBytes("\x00\x10\x00\x05\x00\x03\x02h2");                     // HTTP/2
  const std::string body =
      kBytes("\x03\x03") + std::string(32, 'r') +           // TLS 1.2, random
      kBytes("\x00") +                                      // no session
      kBytes("\x00\x08\xc0\x2b\xc0\x2f\xc0\x2c\xc0\x30") +  // ECDHE with AES-GCM
      kBytes("\x01\x00") +                                  // no compression
      kBytes("\x00") + static_cast<char>(extensions.size()) + extensions;
  const std::string handshake = kBytes("\x01\x00\x00") + static_cast<char>(body.size()) + body;
  return kBytes("\x16\x03\x01\x00") + static_cast<char>(handshake.size()) + handshake;
}

bool IsTls(const std::string& answer) {
  return answer.size() >= 2 && (answer[0] == 0x15 || answer[0] == 0x16) && answer[1] == 0x03;
}

// Where the server listens, resolved.
struct SocketAddress {
  std::string name;
  int family;
  const sockaddr* address;
  socklen_t size;
};

std::string DiagnoseServer(const SocketAddress& server, absl::Time deadline) {
  std::string answer;
  {
    const Socket socket(server.family, SOCK_STREAM);
    const int error = socket.Connect(server.address, server.size, deadline);
    if (error == ECONNREFUSED) return absl::StrCat("connection refused by ", server.name);
    if (error == ETIMEDOUT) return absl::StrCat("no answer from ", server.name);
    if (error == EPROTOTYPE) {
      return absl::StrCat(server.name, " is a socket of another kind, expected the one for gRPC");
    }
    if (error != 0) return absl::StrCat("cannot connect to ", server.name, ": ", strerror(error));
    answer = socket.Ask(Http2Hello(), deadline);
  }
  constexpr char kSettings = 4;
  if (answer.size() >= 9 && answer[3] == kSettings) {
    return absl::StrCat(server.name, " answers, but was not ready in time");
  }
  if (absl::StartsWith(answer, "HTTP/1")) {
    return absl::StrCat(server.name,
                        " speaks HTTP/1, expected the port for gRPC (is it the admin port?)");
  }
  const bool was_silent = answer.empty();
  if (was_silent) {
    const Socket socket(server.family, SOCK_STREAM);
    if (socket.Connect(server.address, server.size, deadline) == 0) {
      answer = socket.Ask(TlsHello(), deadline);
    }
  }
  if (IsTls(answer)) {
    return absl::StrCat(server.name, " speaks TLS, expected a server without it");
  }
  return absl::StrCat(server.name, was_silent ? " takes connections and does not answer"
                                              : " answers something else than HTTP/2");
}

std::string DiagnoseSocket(absl::string_view path, absl::Time deadline) {
  absl::ConsumePrefix(&path, "//");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::StrCat("the path of the socket has ", path.size(), " bytes, expected less than ",
                        sizeof(address.sun_path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return DiagnoseServer({absl::StrCat("unix:", path), AF_UNIX,
                         reinterpret_cast<const sockaddr*>(&address), sizeof(address)},
                        deadline);
}

std::string DiagnoseHost(absl::string_view address, absl::Time deadline) {
  const HostPort to = Split(address);
  const std::shared_ptr<Resolved> resolved = Resolve(to, deadline);
  absl::MutexLock lock(&resolved->mutex);
  if (!resolved->is_done || resolved->error != 0) {
    return absl::StrCat("host '", to.host, "' cannot be resolved: ",
                        resolved->is_done ? gai_strerror(resolved->error) : "no answer in time");
  }
  const std::string name = absl::StrCat(to.host, ":", to.port);
  const addrinfo* chosen = resolved->list;
  for (const addrinfo* at = chosen; at != nullptr; at = at->ai_next) {
    const Socket socket(at->ai_family, SOCK_STREAM);
    if (socket.Connect(at->ai_addr, at->ai_addrlen, deadline) != 0) continue;
    chosen = at;
    break;
  }
  return DiagnoseServer({name, chosen->ai_family, chosen->ai_addr, chosen->ai_addrlen}, deadline);
}

}  // namespace

std::string DiagnoseTarget(const std::string& address, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::string_view rest = address;
  if (absl::ConsumePrefix(&rest, "unix:")) return DiagnoseSocket(rest, deadline);
  for (const char* scheme : {"ipv4:", "ipv6:", "dns:"}) {
    if (!absl::ConsumePrefix(&rest, scheme)) continue;
    // dns://resolver/host:port
    if (absl::ConsumePrefix(&rest, "//")) rest = rest.substr(std::min(rest.find('/'), rest.size()));
    absl::ConsumePrefix(&rest, "/");
    break;
  }
  return DiagnoseHost(rest, deadline);
}

}  // namespace attention::client::internal
