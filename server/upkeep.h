// Looks after a server: drops idle sessions, gives freed memory back to the system, ends uploads
// that stand still, reads credentials again that have changed, and notices when every device is
// lost. Once a second; for memory that runs out it looks more often.
#pragma once

#include <atomic>
#include <thread>

#include "absl/synchronization/notification.h"
#include "server/rpc/grpc_server.h"
#include "server/server_state.h"

namespace attention::server {

class Upkeep {
 public:
  // Begins on a thread of its own. Both must outlive the upkeep or its Stop.
  Upkeep(ServerState& state, GrpcServer& grpc) : state_(state), grpc_(grpc) {}
  ~Upkeep() { Stop(); }
  Upkeep(const Upkeep&) = delete;
  Upkeep& operator=(const Upkeep&) = delete;

  // True when no device has been usable for device-recovery-timeout. Thread-safe.
  bool recovery_timed_out() const { return recovery_timed_out_.load(); }

  // Nothing is looked at any more when it returns.
  void Stop();

 private:
  void Loop();
  // Takes what has changed of tokens, keys and certificates.
  void ReloadCredentials();

  ServerState& state_;
  GrpcServer& grpc_;
  std::atomic<bool> recovery_timed_out_{false};
  absl::Notification stop_;
  std::thread thread_{[this] { Loop(); }};  // last: it uses the rest
};

}  // namespace attention::server
