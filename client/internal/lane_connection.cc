#include "client/internal/lane_connection.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "client/internal/error_details.h"
#include "client/internal/status_macros.h"

namespace attention::client::internal {
namespace {

constexpr std::size_t kMaxPacketBytes = 4096;

// The server answers in the time that it takes to map the memory, or not at all when it has as many
// connections as it wants.
constexpr timeval kAnswerTimeout{1, 0};

absl::Status SystemError(const char* what) {
  return absl::UnavailableError(
      absl::StrCat("shared-memory lane: ", what, ": ", std::strerror(errno)));
}

absl::Status FromLaneError(const v1::LaneError& error) {
  absl::Status status(static_cast<absl::StatusCode>(error.code()), error.message());
  if (!error.reason().empty()) AttachReason(error.reason(), {}, &status);
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LaneConnection>> LaneConnection::Connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::UnavailableError(
        absl::StrCat("shared-memory lane: '", path, "' is no path of a socket"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return SystemError("socket");
  std::unique_ptr<LaneConnection> connection(new LaneConnection(fd));
  // Before connecting, which the first bounds as well.
  if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kAnswerTimeout, sizeof(kAnswerTimeout)) != 0 ||
      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kAnswerTimeout, sizeof(kAnswerTimeout)) != 0) {
    return SystemError("setsockopt");
  }
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return SystemError("connect");
  }
  return connection;
}

LaneConnection::~LaneConnection() { close(fd_); }

void LaneConnection::Interrupt() { shutdown(fd_, SHUT_RDWR); }

absl::StatusOr<v1::RegisterRegionResponse> LaneConnection::Register(const std::string& tenant,
                                                                    int memory_fd) {
  v1::LaneRequest request;
  request.mutable_register_()->set_tenant(tenant);
  ATTN_ASSIGN_OR_RETURN(v1::LaneResponse response, Call(request, &memory_fd));
  if (response.has_error()) return FromLaneError(response.error());
  if (!response.has_register_()) {
    return absl::UnavailableError("shared-memory lane: the answer is none to a registration");
  }
  return response.register_();
}

absl::Status LaneConnection::Release(const std::string& region_id) {
  v1::LaneRequest request;
  request.mutable_release()->set_region_id(region_id);
  ATTN_ASSIGN_OR_RETURN(const v1::LaneResponse response, Call(request, nullptr));
  return response.has_error() ? FromLaneError(response.error()) : absl::OkStatus();
}

absl::StatusOr<v1::LaneResponse> LaneConnection::Call(const v1::LaneRequest& request,
                                                      const int* memory_fd) {
  std::string bytes = request.SerializeAsString();
  iovec buffer{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &buffer;
  message.msg_iovlen = 1;
  if (memory_fd != nullptr) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), memory_fd, sizeof(int));
  }
  if (sendmsg(fd_, &message, MSG_NOSIGNAL) < 0) return SystemError("send");
  char answer[kMaxPacketBytes];
  ssize_t size = -1;
  do {
    size = recv(fd_, answer, sizeof(answer), 0);
  } while (size < 0 && errno == EINTR);
  if (size < 0) return SystemError("receive");
  v1::LaneResponse response;
  if (size == 0 || !response.ParseFromArray(answer, static_cast<int>(size))) {
    return absl::UnavailableError("shared-memory lane: the server closed the connection");
  }
  return response;
}

}  // namespace attention::client::internal
