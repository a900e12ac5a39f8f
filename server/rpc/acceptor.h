// Accepts connections and hands them on.
//
// gRPC's own listeners stop for good at the first accept() that fails for want of descriptors. This
// one goes on: it keeps a descriptor in reserve, with which it takes and closes the arrival, and
// bounds how many connections there are in all and of each peer.
#pragma once

#include <poll.h>

#include <array>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "server/base/metrics.h"
#include "server/listener/connections.h"
#include "server/listener/probe_socket.h"
#include "server/rpc/reset_watch.h"

namespace attention::server {

class Acceptor {
 public:
  struct Door {
    int listen_fd;                      // not blocking
    std::function<void(int fd)> admit;  // takes the descriptor over
    // Is offered each connection but the server's own, and may take it over; null: admit takes all.
    std::function<bool(int fd)> take = {};
  };
  using Warn = std::function<void(const std::string& text)>;

  // Accepts until it is destroyed. `warn` is told of refusals, at most once in five seconds of each
  // reason. No limit applies to connections from `own`. Everything passed must outlive the object.
  Acceptor(std::vector<Door> doors, const ProbeAddresses& own, Connections& connections,
           ServerMetrics& metrics, Warn warn);
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

 private:
  // Refusals for one reason that were not told yet.
  struct Untold {
    std::int64_t count = 0;
    absl::Time last_told = absl::InfinitePast();
    std::string peer;  // the latest
  };

  void Run();
  // Serves the doors that polled_ tells of. False: accepting fails for now.
  bool Serve();
  // Accepts the connections that wait. False: accepting fails for now, and is to be tried again
  // later.
  bool AcceptAll(const Door& door);
  void Admit(const Door& door, int fd);
  void LookForResets();
  void SweepEvery(absl::Duration period);
  // Takes and closes one arrival with the descriptor in reserve. False: that failed, too.
  bool Shed(const Door& door);
  void Refuse(ConnectionRefusal reason, const std::string& peer);
  void TellRefusals();

  const std::vector<Door> doors_;
  const ProbeAddresses& own_;
  Connections& connections_;
  ServerMetrics& metrics_;
  const Warn warn_;
  const int stop_fd_;  // an eventfd: readable when the thread is to end
  int reserve_fd_;
  ResetWatch resets_;
  absl::Time last_look_ = absl::InfinitePast();
  absl::Time last_sweep_ = absl::InfinitePast();
  std::array<Untold, kNumConnectionRefusals> untold_;
  std::vector<pollfd> polled_;  // stop_fd_ and the doors
  std::thread thread_;
};

}  // namespace attention::server
