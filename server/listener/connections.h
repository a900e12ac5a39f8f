// The connections that gRPC serves: how many each peer has, and the means to end them.
//
// gRPC owns their descriptors and does not tell when it closes one, so a number may belong to
// another file by now. A socket is known by its inode, which is compared before anything is done.
//
// Thread-safety: all methods.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"
#include "server/listener/peer_name.h"

namespace attention::server {

class Connections {
 public:
  struct Limits {
    std::size_t all = 10000;
    std::size_t per_peer = 10000;
  };

  explicit Connections(Limits limits) : limits_(limits) {}
  Connections(const Connections&) = delete;
  Connections& operator=(const Connections&) = delete;

  const Limits& limits() const { return limits_; }

  // Before gRPC gets the socket. The reason when it must not, as far as is known: those that were
  // closed since the last Sweep count.
  std::optional<ConnectionRefusal> Add(int fd, const PeerName& name);

  // The server's own, to itself: no limit applies, and it is not counted.
  void AddOwn(int fd);

  // Forgets the connections that gRPC has closed.
  void Sweep();

  // The number of connections, as of the last Sweep.
  std::size_t count() const;

  // Bytes that have come over the connection of a peer's address, as gRPC names it; nothing when
  // there is no such connection or the system does not say, as of unix sockets.
  std::optional<std::int64_t> ReceivedBytes(const std::string& address) const;

  // Ends the connection of one peer's address, as gRPC names it. False: there is none, or several.
  bool Close(const std::string& address);

  // Ends every connection at once, whatever its peer does: both ends see it as closed. gRPC then
  // closes the descriptors itself.
  void CloseAll();

 private:
  struct Entry {
    dev_t device = 0;
    ino_t inode = 0;
    PeerName name;
  };
  using Entries = std::map<int, Entry>;

  void Insert(int fd, const PeerName& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::size_t CountOf(const std::string& peer) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::size_t CountLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Shutdown(int fd, const Entry& entry);
  Entries::iterator Forget(Entries::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<ConnectionRefusal> RefusalOf(const std::string& peer) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  mutable Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);  // by descriptor
  std::map<std::string, std::size_t> count_of_peer_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<std::string, int> fd_of_address_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
