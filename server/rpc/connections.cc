#include "server/rpc/connections.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iterator>

namespace attention::server {
namespace {

bool IsSame(int fd, dev_t device, ino_t inode) {
  struct stat now {};
  return fstat(fd, &now) == 0 && now.st_dev == device && now.st_ino == inode;
}

}  // namespace

std::optional<ConnectionRefusal> Connections::Add(int fd, const std::string& peer) {
  struct stat file {};
  if (fstat(fd, &file) != 0) return ConnectionRefusal::kDescriptors;
  MutexLock lock(&mutex_);
  if (const auto old = entries_.find(fd); old != entries_.end()) Forget(old);
  if (const auto refusal = RefusalOf(peer)) return refusal;
  entries_[fd] = {file.st_dev, file.st_ino, peer};
  ++count_of_peer_[peer];
  return std::nullopt;
}

void Connections::Sweep() {
  MutexLock lock(&mutex_);
  for (auto it = entries_.begin(); it != entries_.end();) {
    it = IsSame(it->first, it->second.device, it->second.inode) ? std::next(it) : Forget(it);
  }
}

std::size_t Connections::count() const {
  MutexLock lock(&mutex_);
  return entries_.size();
}

void Connections::CloseAll() {
  MutexLock lock(&mutex_);
  for (const auto& [fd, entry] : entries_) {
    // gRPC may close the number at any time; a duplicate keeps the socket that was looked at.
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
      if (IsSame(fd, entry.device, entry.inode)) shutdown(fd, SHUT_RDWR);
      continue;
    }
    if (IsSame(copy, entry.device, entry.inode)) shutdown(copy, SHUT_RDWR);
    close(copy);
  }
}

Connections::Entries::iterator Connections::Forget(Entries::iterator entry) {
  const auto peer = count_of_peer_.find(entry->second.peer);
  if (--peer->second == 0) count_of_peer_.erase(peer);
  return entries_.erase(entry);
}

std::optional<ConnectionRefusal> Connections::RefusalOf(const std::string& peer) const {
  if (entries_.size() >= limits_.all) return ConnectionRefusal::kAll;
  const auto count = count_of_peer_.find(peer);
  if (count != count_of_peer_.end() && count->second >= limits_.per_peer) {
    return ConnectionRefusal::kPeer;
  }
  return std::nullopt;
}

}  // namespace attention::server
