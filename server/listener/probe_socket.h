// The client's end of a connection that the server makes to itself.
#pragma once

#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"

namespace attention::server {

// The addresses of the clients' ends that are the server's own, by which the acceptor knows them:
// no limit applies to them. Thread-safe.
class ProbeAddresses {
 public:
  void Add(const std::string& address) {
    MutexLock lock(&mutex_);
    addresses_.insert(address);
  }
  void Remove(const std::string& address) {
    MutexLock lock(&mutex_);
    addresses_.erase(address);
  }
  bool Has(const std::string& address) const {
    MutexLock lock(&mutex_);
    return addresses_.contains(address);
  }

 private:
  mutable Mutex mutex_;
  std::set<std::string> addresses_ ABSL_GUARDED_BY(mutex_);  // as SocketAddressOfPeer gives them
};

// The bytes of the address of a connected socket's other end; empty when there is none any more.
std::string SocketAddressOfPeer(int fd);

// A connection to a listening socket of this process. Closed with the object.
class ProbeSocket {
 public:
  // UNAVAILABLE or DEADLINE_EXCEEDED when there is no connection by then.
  static absl::StatusOr<ProbeSocket> Connect(int listen_fd, absl::Time deadline,
                                             ProbeAddresses& addresses);
  ProbeSocket(ProbeSocket&& other) noexcept;
  ProbeSocket& operator=(ProbeSocket&&) = delete;
  ~ProbeSocket();

  int fd() const { return fd_; }
  // Hands the socket to a caller that closes it in its own time.
  int Release();

 private:
  ProbeSocket(int fd, ProbeAddresses& addresses) : fd_(fd), addresses_(&addresses) {}

  int fd_;
  ProbeAddresses* addresses_;
  std::string address_;  // its own
};

// Waits until the descriptor is readable (POLLIN) or writable (POLLOUT). DEADLINE_EXCEEDED.
absl::Status AwaitSocket(int fd, short events, absl::Time deadline);

}  // namespace attention::server
