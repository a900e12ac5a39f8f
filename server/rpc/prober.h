// Calls the server through each of its listeners, every second, as a client does: a new connection
// and a call of the health service. A listener that asks for TLS is asked for its first answer of a
// handshake instead, which shows as well that it accepts and serves: the server has no certificate
// of a client.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"
#include "server/listener/listener_health.h"
#include "server/listener/probe_socket.h"

namespace grpc {
class ClientContext;
}  // namespace grpc

namespace attention::server {

class Prober {
 public:
  struct Target {
    std::string address;  // as logs and metrics name it
    int listen_fd = -1;
    bool has_tls = false;
  };

  // Until it is destroyed. `after_each` is called after each round. Everything passed must outlive
  // the object.
  Prober(std::vector<Target> targets, ProbeAddresses& addresses, ListenerHealth& health,
         std::function<void()> after_each);
  // Does not wait for a call that is not answered.
  ~Prober();
  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;

 private:
  void Run();
  absl::Status Probe(const Target& target);
  absl::Status CallHealth(ProbeSocket socket, absl::Time deadline);
  bool AwaitNextRound();

  const std::vector<Target> targets_;
  ProbeAddresses& addresses_;
  ListenerHealth& health_;
  const std::function<void()> after_each_;
  Mutex mutex_;
  CondVar is_stopping_changed_;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;  // in flight
  std::thread thread_;
};

}  // namespace attention::server
