#include "server/rpc/shared_memory_lane.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/shared_memory.pb.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

// Packets hold an id or a tenant's name.
constexpr std::size_t kMaxPacketBytes = 4096;

// A packet and the descriptors that came with it, which are closed unless they are taken.
class Packet {
 public:
  Packet() = default;
  ~Packet() {
    for (const int fd : fds_) close(fd);
  }
  Packet(const Packet&) = delete;
  Packet& operator=(const Packet&) = delete;

  // False when the connection has ended.
  bool Receive(int socket) {
    iovec buffer{bytes_, sizeof(bytes_)};
    alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
    msghdr message{};
    message.msg_iov = &buffer;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size <= 0) return size < 0 && (errno == EAGAIN || errno == EINTR);
    size_ = static_cast<std::size_t>(size);
    is_whole_ = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
        fds_.push_back(fd);
      }
    }
    return true;
  }

  bool is_empty() const { return size_ == 0; }
  bool Parse(v1::LaneRequest* request) const {
    return is_whole_ && request->ParseFromArray(bytes_, static_cast<int>(size_));
  }
  // The packet's only descriptor, or INVALID_ARGUMENT.
  absl::StatusOr<int> TakeFd() {
    if (fds_.size() != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("register came with ", fds_.size(), " descriptors, expected the memory's"));
    }
    const int fd = fds_[0];
    fds_.clear();
    return fd;
  }

 private:
  static constexpr std::size_t kMaxFds = 4;

  char bytes_[kMaxPacketBytes];
  std::size_t size_ = 0;
  bool is_whole_ = false;
  std::vector<int> fds_;
};

v1::LaneResponse Refusal(const absl::Status& status) {
  v1::LaneResponse response;
  v1::LaneError* error = response.mutable_error();
  error->set_code(static_cast<int>(status.code()));
  error->set_message(Printable(status.message()));
  if (const auto detail = GetErrorDetail(status)) error->set_reason(detail->reason);
  return response;
}

v1::LaneResponse Register(const v1::RegisterRegionRequest& request, Packet& packet,
                          RegionTable& regions, std::set<std::string>& ids) {
  const absl::StatusOr<int> fd = packet.TakeFd();
  if (!fd.ok()) return Refusal(fd.status());
  const std::string tenant = request.tenant().empty() ? "default" : request.tenant();
  const absl::StatusOr<std::string> id = regions.Register(tenant, *fd);
  if (!id.ok()) return Refusal(id.status());
  ids.insert(*id);
  v1::LaneResponse response;
  response.mutable_register_()->set_region_id(*id);
  if (const auto region = regions.Find(*id, tenant); region.ok()) {
    response.mutable_register_()->set_size_bytes((*region)->size());
  }
  return response;
}

v1::LaneResponse Release(const v1::ReleaseRegionRequest& request, RegionTable& regions,
                         std::set<std::string>& ids) {
  if (ids.erase(request.region_id()) == 0) {
    return Refusal(absl::InvalidArgumentError(absl::StrCat(
        "region_id is ", Quoted(request.region_id()), ", expected one of this connection")));
  }
  regions.Release(request.region_id());
  v1::LaneResponse response;
  response.mutable_release();
  return response;
}

v1::LaneResponse Answer(Packet& packet, RegionTable& regions, std::set<std::string>& ids) {
  v1::LaneRequest request;
  if (!packet.Parse(&request)) {
    return Refusal(absl::InvalidArgumentError("the packet is malformed, expected a LaneRequest"));
  }
  if (request.has_register_()) return Register(request.register_(), packet, regions, ids);
  if (request.has_release()) return Release(request.release(), regions, ids);
  return Refusal(absl::InvalidArgumentError("request is missing, expected register or release"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedMemoryLane>> SharedMemoryLane::Start(
    const Listener& listener, int max_connections, std::uint64_t worker_epoch,
    RegionTable& regions) {
  absl::StatusOr<ListenSocket> socket =
      ListenSocket::BindUnix(listener.socket_path(), SOCK_SEQPACKET, listener.mode);
  if (!socket.ok()) {
    return absl::Status(socket.status().code(),
                        absl::StrCat("shared-memory-listen: ", socket.status().message()));
  }
  const int stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (stop_fd < 0) {
    return absl::UnavailableError(absl::StrCat("shared-memory-listen: cannot watch ",
                                               listener.address, ": ", std::strerror(errno)));
  }
  return std::unique_ptr<SharedMemoryLane>(new SharedMemoryLane(
      listener.socket_path(), *std::move(socket), stop_fd, max_connections, worker_epoch, regions));
}

SharedMemoryLane::SharedMemoryLane(std::string path, ListenSocket socket, int stop_fd,
                                   int max_connections, std::uint64_t worker_epoch,
                                   RegionTable& regions)
    : path_(std::move(path)),
      listen_socket_(std::move(socket)),
      stop_fd_(stop_fd),
      max_connections_(static_cast<std::size_t>(max_connections)),
      worker_epoch_(worker_epoch),
      regions_(regions),
      thread_([this] { Serve(); }) {}

SharedMemoryLane::~SharedMemoryLane() {
  eventfd_write(stop_fd_, 1);
  thread_.join();
  while (!connections_.empty()) Close(connections_.begin()->first);
  close(stop_fd_);
}

void SharedMemoryLane::Serve() {
  for (;;) {
    std::vector<pollfd> polled = {{stop_fd_, POLLIN, 0}};
    // At the limit, who wants to connect waits in the socket's backlog.
    const bool accepts = connections_.size() < max_connections_;
    polled.push_back({accepts ? listen_socket_.fd() : -1, POLLIN, 0});
    for (const auto& [fd, ids] : connections_) polled.push_back({fd, POLLIN, 0});
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    if (polled[0].revents != 0) return;
    for (std::size_t i = 2; i < polled.size(); ++i) {
      if (polled[i].revents != 0 && !HandlePacket(polled[i].fd)) Close(polled[i].fd);
    }
    if (polled[1].revents != 0) Accept();
  }
}

void SharedMemoryLane::Accept() {
  const int fd = accept4(listen_socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd >= 0) connections_[fd];
}

bool SharedMemoryLane::HandlePacket(int fd) {
  Packet packet;
  if (!packet.Receive(fd)) return false;
  if (packet.is_empty()) return true;
  v1::LaneResponse response = Answer(packet, regions_, connections_[fd]);
  if (response.has_register_()) response.mutable_register_()->set_worker_epoch(worker_epoch_);
  const std::string answer = response.SerializeAsString();
  // A client that does not read its answers loses its lease.
  return send(fd, answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(answer.size());
}

void SharedMemoryLane::Close(int fd) {
  for (const std::string& id : connections_[fd]) regions_.Release(id);
  connections_.erase(fd);
  close(fd);
}

}  // namespace attention::server
