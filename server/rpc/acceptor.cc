#include "server/rpc/acceptor.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/contain_exceptions.h"

namespace attention::server {
namespace {

constexpr absl::Duration kTellPeriod = absl::Seconds(5);
constexpr int kPollMs = 250;
// The time between two looks for connections that gRPC has closed: as a rule, and at a limit.
constexpr absl::Duration kSweepPeriod = absl::Seconds(1);
constexpr absl::Duration kSweepPeriodAtLimit = absl::Milliseconds(20);
// After the descriptors ran out: some will have been closed by then.
constexpr int kBackOffMs = 50;

int OpenReserve() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

bool IsOutOfResources(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

// True if accept() failed for this one connection, whose peer has gone or cannot be reached: the
// next may succeed.
bool IsOfOneConnection(int error) {
  switch (error) {
    case ECONNABORTED:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case EINTR:
    case ENETDOWN:
    case ENETUNREACH:
    case ENONET:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case EPERM:
    case EPROTO:
      return true;
    default:
      return false;
  }
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

Acceptor::Acceptor(std::vector<Door> doors, const ProbeAddresses& own, Connections& connections,
                   ServerMetrics& metrics, Warn warn)
    : doors_(std::move(doors)),
      own_(own),
      connections_(connections),
      metrics_(metrics),
      warn_(std::move(warn)),
      stop_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      reserve_fd_(OpenReserve()),
      resets_([&connections](const std::string& address) { return connections.Close(address); },
              warn_, metrics),
      polled_(1 + doors_.size(), pollfd{stop_fd_, POLLIN, 0}),
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
    for (std::size_t i = 0; i < doors_.size(); ++i) {
      polled_[i + 1].fd = backs_off ? -1 : doors_[i].listen_fd;
    }
    poll(polled_.data(), polled_.size(), backs_off ? kBackOffMs : kPollMs);
    if (polled_[0].revents != 0) return;
    backs_off = true;  // also when memory is out
    TryRun([&] { backs_off = !Serve(); });
  }
}

bool Acceptor::Serve() {
  bool is_well = true;
  SweepEvery(kSweepPeriod);
  LookForResets();
  for (std::size_t i = 0; i < doors_.size(); ++i) {
    if (polled_[i + 1].revents != 0 && !AcceptAll(doors_[i])) is_well = false;
  }
  TellRefusals();
  return is_well;
}

bool Acceptor::AcceptAll(const Door& door) {
  // A bound, so that one listener does not keep the others waiting.
  constexpr int kMaxInARow = 64;
  for (int i = 0; i < kMaxInARow; ++i) {
    const int fd = accept4(door.listen_fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
      Admit(door, fd);
    } else if (IsOutOfResources(errno)) {
      if (!Shed(door)) return false;
    } else if (!IsOfOneConnection(errno)) {
      return errno == EAGAIN;
    }
  }
  return true;
}

void Acceptor::Admit(const Door& door, int fd) {
  absl::Cleanup closer = [fd] { close(fd); };
  const auto admit = [&] {
    std::move(closer).Cancel();
    door.admit(fd);
  };
  if (own_.Has(SocketAddressOfPeer(fd))) {
    connections_.AddOwn(fd);
    return admit();
  }
  const PeerName name = PeerNameOf(fd);
  auto refusal = connections_.Add(fd, name);
  if (refusal) {
    SweepEvery(kSweepPeriodAtLimit);
    refusal = connections_.Add(fd, name);
  }
  if (!refusal && door.take != nullptr && door.take(fd)) return std::move(closer).Cancel();
  if (!refusal) return admit();
  Refuse(*refusal, name.peer);
}

void Acceptor::LookForResets() {
  const absl::Time now = absl::Now();
  if (now - last_look_ < absl::Milliseconds(kPollMs)) return;
  last_look_ = now;
  resets_.Look(now);
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
    const absl::Cleanup closer = [fd] { close(fd); };
    Refuse(ConnectionRefusal::kDescriptors, PeerNameOf(fd).peer);
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
