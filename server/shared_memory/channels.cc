#include "server/shared_memory/channels.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/transport/packet.h"
#include "server/base/client_text.h"
#include "server/base/contain_exceptions.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

// Packets hold an id, or a tenant's name and a token; gRPC takes no longer ones.
constexpr std::size_t kMaxPacketBytes = std::size_t{16} << 10;

// After there was no descriptor for a connection: time for others to end.
constexpr absl::Duration kAcceptRest = absl::Milliseconds(100);

// A packet of a client; empty when none is there yet, nullopt when the connection has ended.
// Descriptors that come with it belong to nobody, and the system closes them.
std::optional<std::string> ReceivePacket(int fd) {
  char bytes[kMaxPacketBytes];
  // The bytes read of a packet that is longer are no message.
  const ssize_t size = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_TRUNC);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return std::string();
  if (size <= 0) return std::nullopt;
  if (static_cast<std::size_t>(size) > sizeof(bytes)) return std::string(1, '\xff');
  return std::string(bytes, static_cast<std::size_t>(size));
}

// Sends an answer, with the descriptor unless it is negative. A client that does not read its
// answers loses its lease.
bool SendAnswer(int fd, const v1::SharedMemoryResponse& response, int passed_fd = -1) {
  const std::string bytes = response.SerializeAsString();
  return transport::SendPacket(fd, bytes, passed_fd, MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

v1::SharedMemoryResponse Refusal(const absl::Status& status) {
  v1::SharedMemoryResponse response;
  v1::SharedMemoryError* error = response.mutable_error();
  error->set_code(static_cast<int>(status.code()));
  error->set_message(Printable(status.message()));
  if (const auto detail = GetErrorDetail(status)) error->set_reason(detail->reason);
  return response;
}

}  // namespace

class SharedMemoryChannels::Alarm {
 public:
  Alarm() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~Alarm() {
    if (fd_ >= 0) close(fd_);
  }
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;

  int fd() const { return fd_; }
  void Ring() const { eventfd_write(fd_, 1); }
  void Clear() const {
    eventfd_t count = 0;
    eventfd_read(fd_, &count);
  }

 private:
  const int fd_;
};

// The worker's until it is done, then the channels'.
struct SharedMemoryChannels::Making {
  // A turn of the worker's; true when it was the last.
  bool Work() {
    if (is_dropped.load()) return region == nullptr || !region->Depopulate(kBytesPerTurn);
    if (region == nullptr) {
      absl::StatusOr<std::unique_ptr<SharedRegion>> made = SharedRegion::Create(bytes);
      status = made.status();
      if (made.ok()) region = *std::move(made);
    }
    if (status.ok()) status = region->Populate(kBytesPerTurn);
    if (status.ok() && !region->is_populated()) return false;
    if (!status.ok()) region.reset();
    is_done.store(true);
    return true;
  }

  std::string tenant;
  std::int64_t bytes = 0;
  RegionTable::Charge charge;
  std::unique_ptr<SharedRegion> region;
  absl::Status status;
  std::atomic<bool> is_dropped{false};  // the connection has ended
  std::atomic<bool> is_done{false};
};

absl::StatusOr<std::unique_ptr<SharedMemoryChannels>> SharedMemoryChannels::Start(
    const Listener& listener, const Limits& limits, std::uint64_t server_epoch,
    RegionTable& regions, TenantOf tenant_of) {
  absl::StatusOr<ListenSocket> socket =
      ListenSocket::BindUnix(listener.socket_path(), SOCK_SEQPACKET, listener.mode);
  if (!socket.ok()) {
    return absl::Status(socket.status().code(),
                        absl::StrCat("shared-memory-listen: ", socket.status().message()));
  }
  auto alarm = std::make_shared<Alarm>();
  if (alarm->fd() < 0) {
    return absl::UnavailableError(absl::StrCat("shared-memory-listen: cannot watch ",
                                               listener.address, ": ", std::strerror(errno)));
  }
  return std::unique_ptr<SharedMemoryChannels>(
      new SharedMemoryChannels(listener.socket_path(), *std::move(socket), std::move(alarm), limits,
                               server_epoch, regions, std::move(tenant_of)));
}

SharedMemoryChannels::SharedMemoryChannels(std::string path, ListenSocket socket,
                                           std::shared_ptr<Alarm> alarm, const Limits& limits,
                                           std::uint64_t server_epoch, RegionTable& regions,
                                           TenantOf tenant_of)
    : path_(std::move(path)),
      listen_socket_(std::move(socket)),
      alarm_(std::move(alarm)),
      limits_(limits),
      server_epoch_(server_epoch),
      regions_(regions),
      tenant_of_(std::move(tenant_of)),
      thread_([this] { Serve(); }) {}

SharedMemoryChannels::~SharedMemoryChannels() {
  is_stopping_.store(true);
  alarm_->Ring();
  thread_.join();
  // Clients keep the results that they have there.
  regions_.ReleaseAllAndKeepPages();
  while (!connections_.empty()) Close(connections_.begin()->first);
}

void SharedMemoryChannels::Serve() {
  while (!is_stopping_.load()) {
    if (!TryRun([this] { ServeOnce(); })) absl::SleepFor(kAcceptRest);
  }
}

void SharedMemoryChannels::ServeOnce() {
  const std::vector<pollfd> events = AwaitEvents();
  alarm_->Clear();
  if (is_stopping_.load()) return;
  for (std::size_t i = 2; i < events.size(); ++i) {
    const int fd = events[i].fd;
    bool is_well = false;
    TryRun([&] { is_well = Handle(fd, connections_.at(fd), events[i].revents); });
    if (!is_well) Close(fd);
  }
  if (events[1].revents != 0) Accept();
}

std::vector<pollfd> SharedMemoryChannels::AwaitEvents() const {
  std::vector<pollfd> polled = {{alarm_->fd(), POLLIN, 0}};
  // At the limit, who wants to connect waits in the socket's backlog.
  const bool has_room = connections_.size() < static_cast<std::size_t>(limits_.max_connections);
  const absl::Duration rest = std::max(accept_at_ - absl::Now(), absl::ZeroDuration());
  const bool accepts = has_room && rest == absl::ZeroDuration();
  polled.push_back({accepts ? listen_socket_.fd() : -1, POLLIN, 0});
  for (const auto& [fd, connection] : connections_) {
    polled.push_back({fd, connection.making == nullptr ? short{POLLIN} : short{0}, 0});
  }
  const int timeout =
      has_room && !accepts ? static_cast<int>(absl::ToInt64Milliseconds(rest)) + 1 : -1;
  while (poll(polled.data(), polled.size(), timeout) < 0 && errno == EINTR) continue;
  return polled;
}

void SharedMemoryChannels::Accept() {
  const int fd = accept4(listen_socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    // Without a descriptor for it the connection stays in the backlog, and poll would return at
    // once again and again.
    const bool is_out = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    if (is_out) accept_at_ = absl::Now() + kAcceptRest;
    return;
  }
  absl::Cleanup closer = [fd] { close(fd); };
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return;
  const int count = ConnectionsOf(peer.uid);
  if (count >= limits_.max_connections_per_user) {
    SendAnswer(fd, Refusal(ReasonedError(
                       absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
                       absl::StrCat("the user has ", count,
                                    " connections for shared memory, expected fewer than ",
                                    limits_.max_connections_per_user))));
    return;
  }
  Connection& connection = connections_[fd];
  connection.owner = {++last_number_, peer.uid};
  connection.group = peer.gid;
  std::move(closer).Cancel();
}

int SharedMemoryChannels::ConnectionsOf(std::uint32_t user) const {
  return static_cast<int>(
      std::count_if(connections_.begin(), connections_.end(),
                    [user](const auto& entry) { return entry.second.owner.user == user; }));
}

bool SharedMemoryChannels::Handle(int fd, Connection& connection, short events) {
  if (connection.making == nullptr) return events == 0 || HandlePacket(fd, connection);
  if (events != 0) return false;  // nothing but its end is waited for
  return !connection.making->is_done.load() || FinishMaking(fd, connection);
}

bool SharedMemoryChannels::HandlePacket(int fd, Connection& connection) {
  const std::optional<std::string> packet = ReceivePacket(fd);
  if (!packet.has_value()) return false;
  if (packet->empty()) return true;
  const std::optional<v1::SharedMemoryResponse> response = Answer(*packet, connection);
  return !response.has_value() || SendAnswer(fd, *response);
}

std::optional<v1::SharedMemoryResponse> SharedMemoryChannels::Answer(const std::string& packet,
                                                                     Connection& connection) {
  v1::SharedMemoryRequest request;
  if (!request.ParseFromString(packet)) {
    return Refusal(
        absl::InvalidArgumentError("the packet is malformed, expected a SharedMemoryRequest"));
  }
  if (request.has_create()) return Create(request.create(), connection);
  if (request.has_release()) return Release(request.release(), connection);
  return Refusal(absl::InvalidArgumentError("request is missing, expected create or release"));
}

std::optional<v1::SharedMemoryResponse> SharedMemoryChannels::Create(
    const v1::CreateRegionRequest& request, Connection& connection) {
  const std::int64_t max_bytes = regions_.limits().max_bytes_per_connection;
  if (request.size_bytes() < SharedRegion::kMinBytes || request.size_bytes() > max_bytes) {
    return Refusal(absl::InvalidArgumentError(absl::StrCat("size_bytes is ", request.size_bytes(),
                                                           ", expected ", SharedRegion::kMinBytes,
                                                           " to ", max_bytes)));
  }
  absl::StatusOr<std::string> tenant =
      tenant_of_({connection.owner.user, connection.group, request.tenant(), request.token()});
  if (!tenant.ok()) return Refusal(tenant.status());
  auto charge = regions_.Reserve(connection.owner, request.size_bytes());
  if (!charge.ok()) return Refusal(charge.status());
  auto making = std::make_shared<Making>();
  making->tenant = *std::move(tenant);
  making->bytes = request.size_bytes();
  making->charge = *std::move(charge);
  connection.making = making;
  AddTask(regions_.worker(), [making, alarm = alarm_] {
    if (!making->Work()) return false;
    alarm->Ring();
    return true;
  });
  return std::nullopt;
}

bool SharedMemoryChannels::FinishMaking(int fd, Connection& connection) {
  const std::shared_ptr<Making> making = std::move(connection.making);
  if (!making->status.ok()) {
    making->charge.reset();
    return SendAnswer(fd, Refusal(making->status));
  }
  const int memory_fd = making->region->TakeFd();
  const absl::Cleanup closer = [memory_fd] { close(memory_fd); };  // the client has it
  v1::SharedMemoryResponse response;
  response.mutable_create()->set_size_bytes(making->region->size());
  response.mutable_create()->set_server_epoch(server_epoch_);
  const std::string id =
      regions_.Add(making->tenant, std::move(making->region), std::move(making->charge));
  connection.region_ids.insert(id);
  response.mutable_create()->set_region_id(id);
  return SendAnswer(fd, response, memory_fd);
}

v1::SharedMemoryResponse SharedMemoryChannels::Release(const v1::ReleaseRegionRequest& request,
                                                       Connection& connection) {
  if (connection.region_ids.erase(request.region_id()) == 0) {
    return Refusal(absl::InvalidArgumentError(absl::StrCat(
        "region_id is ", Quoted(request.region_id()), ", expected one of this connection")));
  }
  regions_.Release(request.region_id());
  v1::SharedMemoryResponse response;
  response.mutable_release();
  return response;
}

void SharedMemoryChannels::Close(int fd) {
  const Connection& connection = connections_.at(fd);
  if (connection.making != nullptr) connection.making->is_dropped.store(true);
  for (const std::string& id : connection.region_ids) regions_.Release(id);
  connections_.erase(fd);
  close(fd);
}

}  // namespace attention::server
