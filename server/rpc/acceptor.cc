#include "server/rpc/acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace attention::server {
namespace {

constexpr absl::Duration kTellPeriod = absl::Seconds(5);
constexpr int kPollMs = 1000;
// How often connections that gRPC has closed are looked for: as a rule, and at a limit.
constexpr absl::Duration kSweepPeriod = absl::Seconds(1);
constexpr absl::Duration kSweepPeriodAtLimit = absl::Milliseconds(20);
// After the descriptors ran out: some will have been closed by then.
constexpr int kBackOffMs = 50;

int OpenReserve() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

bool IsOutOfResources(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

// Whose connection it is, as limits count: the address without its port, or the user.
std::string PeerOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "";
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_UNIX) {
    ucred user{};
    socklen_t user_size = sizeof(user);
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &user, &user_size);
    return absl::StrCat("uid ", user.uid);
  }
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(&address)->sin_addr, text,
              sizeof(text));
    return text;
  }
  const in6_addr& ip = reinterpret_cast<const sockaddr_in6*>(&address)->sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&ip)) {
    inet_ntop(AF_INET, &ip.s6_addr[12], text, sizeof(text));
  } else {
    inet_ntop(AF_INET6, &ip, text, sizeof(text));
  }
  return text;
}

std::string Because(ConnectionRefusal reason, const Connections::Limits& limits,
                    const std::string& peer) {
  switch (reason) {
    case ConnectionRefusal::kDescriptors:
      return "the process has no file descriptors left (ulimit -n)";
    case ConnectionRefusal::kAll:
      return absl::StrCat("there are max-connections (", limits.all, ")");
    case ConnectionRefusal::kPeer:
      return absl::StrCat(peer, " has max-connections-per-peer (", limits.per_peer, ")");
  }
  return "";
}

}  // namespace

Acceptor::Acceptor(std::vector<Door> doors, Connections& connections, ServerMetrics& metrics,
                   Warn warn)
    : doors_(std::move(doors)),
      connections_(connections),
      metrics_(metrics),
      warn_(std::move(warn)),
      stop_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      reserve_fd_(OpenReserve()),
      thread_([this] { Run(); }) {}

Acceptor::~Acceptor() {
  eventfd_write(stop_fd_, 1);
  thread_.join();
  close(stop_fd_);
  if (reserve_fd_ >= 0) close(reserve_fd_);
}

void Acceptor::Run() {
  bool backs_off = false;
  for (;;) {
    std::vector<pollfd> polled = {{stop_fd_, POLLIN, 0}};
    for (const Door& door : doors_) polled.push_back({backs_off ? -1 : door.listen_fd, POLLIN, 0});
    poll(polled.data(), polled.size(), backs_off ? kBackOffMs : kPollMs);
    if (polled[0].revents != 0) return;
    backs_off = false;
    SweepEvery(kSweepPeriod);
    for (std::size_t i = 0; i < doors_.size(); ++i) {
      if (polled[i + 1].revents != 0 && !AcceptAll(doors_[i])) backs_off = true;
    }
    TellRefusals();
  }
}

bool Acceptor::AcceptAll(const Door& door) {
  // A bound, so that one door does not keep the others waiting.
  constexpr int kMaxInARow = 64;
  for (int i = 0; i < kMaxInARow; ++i) {
    const int fd = accept4(door.listen_fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
      Admit(door, fd);
    } else if (IsOutOfResources(errno)) {
      if (!Shed(door)) return false;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return true;
    }
    // Anything else is the newcomer's own end: the next may be well.
  }
  return true;
}

void Acceptor::Admit(const Door& door, int fd) {
  const std::string peer = PeerOf(fd);
  auto refusal = connections_.Add(fd, peer);
  if (refusal) {
    SweepEvery(kSweepPeriodAtLimit);
    refusal = connections_.Add(fd, peer);
  }
  if (!refusal) return door.admit(fd);
  close(fd);
  Refuse(*refusal, peer);
}

void Acceptor::SweepEvery(absl::Duration period) {
  const absl::Time now = absl::Now();
  if (now - last_sweep_ < period) return;
  last_sweep_ = now;
  connections_.Sweep();
}

bool Acceptor::Shed(const Door& door) {
  if (reserve_fd_ >= 0) close(std::exchange(reserve_fd_, -1));
  const int fd = accept4(door.listen_fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd >= 0) {
    const std::string peer = PeerOf(fd);
    close(fd);
    Refuse(ConnectionRefusal::kDescriptors, peer);
  }
  reserve_fd_ = OpenReserve();
  return fd >= 0 && reserve_fd_ >= 0;
}

void Acceptor::Refuse(ConnectionRefusal reason, const std::string& peer) {
  metrics_.connections_refused[static_cast<int>(reason)].Add();
  Untold& untold = untold_[static_cast<int>(reason)];
  ++untold.count;
  untold.peer = peer;
}

void Acceptor::TellRefusals() {
  const absl::Time now = absl::Now();
  for (int reason = 0; reason < kNumConnectionRefusals; ++reason) {
    Untold& untold = untold_[reason];
    if (untold.count == 0 || now - untold.last_told < kTellPeriod) continue;
    warn_(absl::StrCat(
        "refused ", untold.count, untold.count == 1 ? " connection" : " connections",
        ", the latest of ", untold.peer, ": ",
        Because(static_cast<ConnectionRefusal>(reason), connections_.limits(), untold.peer)));
    untold.count = 0;
    untold.last_told = now;
  }
}

}  // namespace attention::server
