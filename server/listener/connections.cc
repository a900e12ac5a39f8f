#include "server/listener/connections.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <iterator>

namespace attention::server {
namespace {

// A name that no address and no user has.
constexpr char kOwnPeer[] = "self";

bool IsSame(int fd, dev_t device, ino_t inode) {
  struct stat now {};
  return fstat(fd, &now) == 0 && now.st_dev == device && now.st_ino == inode;
}

}  // namespace

std::optional<ConnectionRefusal> Connections::Add(int fd, const PeerName& name) {
  MutexLock lock(&mutex_);
  // The number's last owner has been closed, or it would not have been given again.
  if (const auto old = entries_.find(fd); old != entries_.end()) Forget(old);
  if (const auto refusal = RefusalOf(name.peer)) return refusal;
  Insert(fd, name);
  return std::nullopt;
}

void Connections::AddOwn(int fd) {
  MutexLock lock(&mutex_);
  if (const auto old = entries_.find(fd); old != entries_.end()) Forget(old);
  Insert(fd, {kOwnPeer, ""});
}

void Connections::Insert(int fd, const PeerName& name) {
  struct stat file {};
  if (fstat(fd, &file) != 0) return;
  entries_[fd] = {file.st_dev, file.st_ino, name};
  ++count_of_peer_[name.peer];
  fd_of_address_[name.address] = fd;
}

void Connections::Sweep() {
  MutexLock lock(&mutex_);
  for (auto it = entries_.begin(); it != entries_.end();) {
    it = IsSame(it->first, it->second.device, it->second.inode) ? std::next(it) : Forget(it);
  }
}

std::size_t Connections::count() const {
  MutexLock lock(&mutex_);
  return CountLocked();
}

std::optional<std::int64_t> Connections::ReceivedBytes(const std::string& address) const {
  MutexLock lock(&mutex_);
  const auto found = fd_of_address_.find(address);
  if (found == fd_of_address_.end()) return std::nullopt;
  tcp_info info{};
  socklen_t size = sizeof(info);
  if (getsockopt(found->second, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return std::nullopt;
  constexpr auto kNeeded = offsetof(tcp_info, tcpi_bytes_received) + sizeof(std::uint64_t);
  if (size < kNeeded) return std::nullopt;  // an older system
  return static_cast<std::int64_t>(info.tcpi_bytes_received);
}

bool Connections::Close(const std::string& address) {
  MutexLock lock(&mutex_);
  const auto has_address = [&](const auto& entry) { return entry.second.name.address == address; };
  if (std::count_if(entries_.begin(), entries_.end(), has_address) != 1) return false;
  const auto entry = std::find_if(entries_.begin(), entries_.end(), has_address);
  Shutdown(entry->first, entry->second);
  return true;
}

void Connections::CloseAll() {
  MutexLock lock(&mutex_);
  for (const auto& [fd, entry] : entries_) Shutdown(fd, entry);
}

// gRPC may close the number at any time; a duplicate keeps the socket that was looked at.
void Connections::Shutdown(int fd, const Entry& entry) {
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  const int checked = copy >= 0 ? copy : fd;  // without a descriptor left: as good as can be
  if (IsSame(checked, entry.device, entry.inode)) shutdown(checked, SHUT_RDWR);
  if (copy >= 0) close(copy);
}

Connections::Entries::iterator Connections::Forget(Entries::iterator entry) {
  const auto peer = count_of_peer_.find(entry->second.name.peer);
  if (--peer->second == 0) count_of_peer_.erase(peer);
  const auto address = fd_of_address_.find(entry->second.name.address);
  if (address != fd_of_address_.end() && address->second == entry->first) {
    fd_of_address_.erase(address);
  }
  return entries_.erase(entry);
}

std::optional<ConnectionRefusal> Connections::RefusalOf(const std::string& peer) const {
  if (CountLocked() >= limits_.all) return ConnectionRefusal::kAll;
  if (CountOf(peer) >= limits_.per_peer) return ConnectionRefusal::kPeer;
  return std::nullopt;
}

std::size_t Connections::CountOf(const std::string& peer) const {
  const auto count = count_of_peer_.find(peer);
  return count == count_of_peer_.end() ? 0 : count->second;
}

std::size_t Connections::CountLocked() const { return entries_.size() - CountOf(kOwnPeer); }

}  // namespace attention::server
