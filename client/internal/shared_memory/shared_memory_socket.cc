#include "client/internal/shared_memory/shared_memory_socket.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/convert/error_details.h"
#include "proto/transport/packet.h"

namespace attention::client::internal {
namespace {

constexpr std::size_t kMaxPacketBytes = 4096;

// The server answers in the time that it takes to find the memory's pages, or not at all when it
// has as many connections as it wants.
constexpr int kAnswerTimeoutMs = 10'000;
constexpr timeval kConnectTimeout{1, 0};

absl::Status SystemError(const char* what) {
  return absl::UnavailableError(
      absl::StrCat("shared-memory channel: ", what, ": ", std::strerror(errno)));
}

// True if no folder of the path can be written by everybody.
bool OnlyOwnersWrite(const std::string& path) {
  if (path.front() != '/') return false;
  for (std::size_t end = path.rfind('/'); end != std::string::npos;
       end = path.rfind('/', end - 1)) {
    struct stat folder {};
    if (stat(path.substr(0, end + 1).c_str(), &folder) != 0) return false;
    if ((folder.st_mode & S_IWOTH) != 0) return false;
    if (end == 0) break;
  }
  return true;
}

absl::Status FromChannelError(const v1::SharedMemoryError& error) {
  absl::Status status(static_cast<absl::StatusCode>(error.code()), error.message());
  if (!error.reason().empty()) AttachReason(error.reason(), {}, &status);
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedMemorySocket>> SharedMemorySocket::Connect(
    const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::UnavailableError(
        absl::StrCat("shared-memory channel: '", path, "' is no path of a socket"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return SystemError("socket");
  const int interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  std::unique_ptr<SharedMemorySocket> connection(new SharedMemorySocket(fd, interrupt_fd));
  if (interrupt_fd < 0) return SystemError("eventfd");
  // Bounds connecting, too.
  if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kConnectTimeout, sizeof(kConnectTimeout)) != 0) {
    return SystemError("setsockopt");
  }
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return SystemError("connect");
  }
  connection->may_have_token_ = connection->IsTrusted(path);
  return connection;
}

bool SharedMemorySocket::IsTrusted(const std::string& path) const {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd_, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  return peer.uid == 0 || peer.uid == geteuid() || OnlyOwnersWrite(path);
}

SharedMemorySocket::~SharedMemorySocket() {
  close(fd_);
  if (interrupt_fd_ >= 0) close(interrupt_fd_);
}

void SharedMemorySocket::Interrupt() { eventfd_write(interrupt_fd_, 1); }

absl::StatusOr<SharedMemorySocket::Region> SharedMemorySocket::Create(const std::string& tenant,
                                                                      const std::string& token,
                                                                      std::size_t bytes) {
  v1::SharedMemoryRequest request;
  request.mutable_create()->set_tenant(tenant);
  request.mutable_create()->set_token(token);
  request.mutable_create()->set_size_bytes(static_cast<std::int64_t>(bytes));
  Region region;
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(v1::SharedMemoryResponse response,
                                    Call(request, &region.memory_fd));
  if (response.has_create() && region.memory_fd >= 0) {
    region.info = std::move(*response.mutable_create());
    return region;
  }
  if (region.memory_fd >= 0) close(region.memory_fd);
  if (response.has_error()) return FromChannelError(response.error());
  return absl::UnavailableError("shared-memory channel: the answer holds no memory");
}

absl::Status SharedMemorySocket::Release(const std::string& region_id) {
  v1::SharedMemoryRequest request;
  request.mutable_release()->set_region_id(region_id);
  int none = -1;
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(const v1::SharedMemoryResponse response, Call(request, &none));
  if (none >= 0) close(none);
  return response.has_error() ? FromChannelError(response.error()) : absl::OkStatus();
}

absl::Status SharedMemorySocket::AwaitAnswer() const {
  pollfd polled[] = {{fd_, POLLIN, 0}, {interrupt_fd_, POLLIN, 0}};
  int count = -1;
  do {
    count = poll(polled, 2, kAnswerTimeoutMs);
  } while (count < 0 && errno == EINTR);
  if (count == 0) return absl::UnavailableError("shared-memory channel: no answer in time");
  if (polled[1].revents != 0) return absl::UnavailableError("shared-memory channel: interrupted");
  return absl::OkStatus();
}

absl::StatusOr<v1::SharedMemoryResponse> SharedMemorySocket::Call(
    const v1::SharedMemoryRequest& request, int* memory_fd) {
  const std::string bytes = request.SerializeAsString();
  if (send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) return SystemError("send");
  ATTENTION_CLIENT_RETURN_IF_ERROR(AwaitAnswer());
  char answer[kMaxPacketBytes];
  const ssize_t size = transport::ReceivePacket(fd_, answer, memory_fd, MSG_DONTWAIT);
  if (size < 0) return SystemError("receive");
  v1::SharedMemoryResponse response;
  if (size == 0 || !response.ParseFromArray(answer, static_cast<int>(size))) {
    if (*memory_fd >= 0) close(std::exchange(*memory_fd, -1));
    return absl::UnavailableError("shared-memory channel: the server closed the connection");
  }
  return response;
}

}  // namespace attention::client::internal
