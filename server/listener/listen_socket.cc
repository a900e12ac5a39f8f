#include "server/listener/listen_socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// A connection whose peer does not acknowledge for so long is closed, as gRPC does.
constexpr int kTcpUserTimeoutMs = 20'000;

absl::Status CannotBind(absl::string_view address, absl::string_view why) {
  return absl::UnavailableError(absl::StrCat("cannot bind ", address, ": ", why));
}

std::string DirectoryOf(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// The meaning of an errno of bind() at a path.
std::string WhyNotAtPath(int error, const std::string& path) {
  const std::string directory = DirectoryOf(path);
  switch (error) {
    case ENOENT:
      return absl::StrCat("the directory ", directory, " does not exist");
    case ENOTDIR:
      return absl::StrCat(directory, " is no directory");
    case EACCES:
    case EPERM:
      return absl::StrCat("this user may not make files in the directory ", directory);
    case EROFS:
      return absl::StrCat("the file system of ", directory, " is read-only");
    default:
      return std::strerror(error);
  }
}

std::string WhyNotAtPort(int error, int port) {
  switch (error) {
    case EADDRINUSE:
      return absl::StrCat("port ", port, " is in use");
    case EADDRNOTAVAIL:
      return "no network interface of this machine has that address";
    case EACCES:
      return absl::StrCat("this user may not take port ", port,
                          " (ports below 1024 need CAP_NET_BIND_SERVICE)");
    default:
      return std::strerror(error);
  }
}

// Held while a socket's file is looked at and replaced, so that two servers that start at once do
// not both take the same stale file. A lock of the directory leaves nothing behind.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::string& path)
      : fd_(open(DirectoryOf(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {}
  ~DirectoryLock() {
    if (fd_ >= 0) close(fd_);
  }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

  // False when somebody else has held it for two seconds. A directory that cannot be locked, which
  // some file systems do not offer, counts as locked.
  bool Acquire() const {
    constexpr int kTries = 200;
    for (int i = 0; i < kTries; ++i) {
      if (fd_ < 0 || flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return true;
      absl::SleepFor(absl::Milliseconds(10));
    }
    return false;
  }

 private:
  const int fd_;
};

// The errno of a connection to the socket: 0 when somebody answers.
int TryConnect(const sockaddr_un& address, int type) {
  const int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno;
  const int result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = result == 0 ? 0 : errno;
  close(fd);
  return error;
}

// Removes what a dead process left at the path, and nothing else.
absl::Status RemoveStale(const std::string& path, const sockaddr_un& address, int type) {
  struct stat file {};
  if (lstat(path.c_str(), &file) != 0) {
    if (errno == ENOENT) return absl::OkStatus();
    return CannotBind(absl::StrCat("unix:", path), WhyNotAtPath(errno, path));
  }
  const std::string name = absl::StrCat("unix:", path);
  if (!S_ISSOCK(file.st_mode)) {
    return CannotBind(name, "a file that is no socket is in the way");
  }
  const int error = TryConnect(address, type);
  if (error == ECONNREFUSED) {
    if (unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
    return CannotBind(name, absl::StrCat("the file of a server that has ended is in the way and "
                                         "cannot be removed: ",
                                         std::strerror(errno)));
  }
  // A full backlog and a socket of another type show a server as well.
  if (error == 0 || error == EAGAIN || error == EPROTOTYPE) {
    return CannotBind(name, "it is in use by a running server");
  }
  return CannotBind(name, absl::StrCat("whether a running server uses it cannot be found out: ",
                                       std::strerror(error)));
}

absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return CannotBind(absl::StrCat("unix:", path),
                      absl::StrCat("the path has ", path.size(), " bytes, expected at most ",
                                   sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

void SetOption(int fd, int level, int option, int value) {
  setsockopt(fd, level, option, &value, sizeof(value));
}

int PortOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port
                   : reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

// A listening socket's descriptor, or minus the errno.
int ListenAt(const addrinfo& info, int port) {
  sockaddr_storage address{};
  std::memcpy(&address, info.ai_addr, info.ai_addrlen);
  if (info.ai_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(&address)->sin6_port = htons(static_cast<std::uint16_t>(port));
  } else {
    reinterpret_cast<sockaddr_in*>(&address)->sin_port = htons(static_cast<std::uint16_t>(port));
  }
  const int fd = socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  // Accepted sockets have what is set here. SO_REUSEPORT is not: two servers would share the port.
  SetOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, kTcpUserTimeoutMs);
  if (info.ai_family == AF_INET6) SetOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), info.ai_addrlen) == 0 &&
      listen(fd, SOMAXCONN) == 0) {
    return fd;
  }
  const int error = errno;
  close(fd);
  return -error;
}

// True for errors that a machine without IPv6 reports for a name that has an IPv6 address.
bool IsFamilyMissing(int error) { return error == EAFNOSUPPORT || error == EADDRNOTAVAIL; }

struct HostAndPort {
  std::string host;
  int port = -1;
};

absl::StatusOr<HostAndPort> Split(absl::string_view address) {
  const auto colon = address.rfind(':');
  HostAndPort parts;
  if (colon == absl::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &parts.port) || parts.port < 0 ||
      parts.port > 65535) {
    return CannotBind(address, "expected host:port with a port of 0 to 65535");
  }
  absl::string_view host = address.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[") != absl::ConsumeSuffix(&host, "]")) {
    return CannotBind(address, "expected an IPv6 address in brackets, such as [::1]:7070");
  }
  parts.host = std::string(host);
  return parts;
}

}  // namespace

ListenSocket::ListenSocket(ListenSocket&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), port_(other.port_), file_(std::move(other.file_)) {
  other.file_.reset();
}

ListenSocket::~ListenSocket() {
  if (file_) {
    const DirectoryLock lock(file_->path);
    struct stat file {};
    if (lock.Acquire() && lstat(file_->path.c_str(), &file) == 0 && file.st_dev == file_->device &&
        file.st_ino == file_->inode) {
      unlink(file_->path.c_str());
    }
  }
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<ListenSocket> ListenSocket::BindUnix(const std::string& path, int type,
                                                    std::optional<int> mode) {
  ATTENTION_ASSIGN_OR_RETURN(const sockaddr_un address, UnixAddress(path));
  const std::string name = absl::StrCat("unix:", path);
  const DirectoryLock lock(path);
  if (!lock.Acquire()) {
    return CannotBind(name,
                      absl::StrCat("another process has locked the directory ", DirectoryOf(path)));
  }
  ATTENTION_RETURN_IF_ERROR(RemoveStale(path, address, type));
  ListenSocket listener(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), 0);
  if (listener.fd_ < 0) return CannotBind(name, std::strerror(errno));
  if (bind(listener.fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return CannotBind(name, WhyNotAtPath(errno, path));
  }
  struct stat file {};
  const bool is_listening = (!mode || chmod(path.c_str(), static_cast<mode_t>(*mode)) == 0) &&
                            lstat(path.c_str(), &file) == 0 && listen(listener.fd_, SOMAXCONN) == 0;
  if (!is_listening) {
    const absl::Status status = CannotBind(name, std::strerror(errno));
    unlink(path.c_str());
    return status;
  }
  listener.file_ = File{path, file.st_dev, file.st_ino};
  return listener;
}

absl::StatusOr<std::vector<ListenSocket>> ListenSocket::BindTcp(absl::string_view address) {
  ATTENTION_ASSIGN_OR_RETURN(const HostAndPort wanted, Split(address));
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(wanted.host.c_str(), nullptr, &hints, &found); error != 0) {
    return CannotBind(address, absl::StrCat("the host ", wanted.host,
                                            " cannot be resolved: ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  std::vector<ListenSocket> sockets;
  int missing = 0;  // errno of an address that this machine does not have
  for (const addrinfo* info = addresses.get(); info != nullptr; info = info->ai_next) {
    const int port = sockets.empty() ? wanted.port : sockets.front().port();
    const int fd = ListenAt(*info, port);
    if (fd >= 0) {
      sockets.push_back(ListenSocket(fd, PortOf(fd)));
    } else if (IsFamilyMissing(-fd)) {
      missing = -fd;
    } else {
      return CannotBind(address, WhyNotAtPort(-fd, port));
    }
  }
  if (sockets.empty()) return CannotBind(address, WhyNotAtPort(missing, wanted.port));
  return sockets;
}

}  // namespace attention::server
