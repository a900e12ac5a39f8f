// The gRPC server: listeners, services, health, reflection.
//
// Thread-safety: BeginDrain and Shutdown from one thread, EndStalled from another.
#pragma once

#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/listener/listener.h"
#include "server/rpc/attention_service.h"
#include "server/rpc/completion_threads.h"
#include "server/rpc/health_service.h"
#include "server/rpc/layer_service.h"
#include "server/rpc/listening.h"
#include "server/rpc/reflection.h"
#include "server/rpc/reflection_service.h"
#include "server/rpc/server_service.h"
#include "server/rpc/session_service.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/user_servers.h"

namespace attention::server {

class GrpcServer {
 public:
  // Takes calls at each listener. UNAVAILABLE names the address that cannot be bound. Health is
  // SERVING when it returns.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const std::vector<Listener>& listeners,
                                                           const ServiceContext& services);
  // One that has no address: its connections are given to it.
  static std::unique_ptr<GrpcServer> StartWithoutAddress(const ServiceContext& services);
  ~GrpcServer();

  // Serves an accepted connection, without TLS, and takes its descriptor over.
  void Admit(int fd);

  // With the ports that were picked.
  const std::vector<std::string>& addresses() const { return listening_.addresses(); }

  // Ends streams that hold what others could use and do not move. To be called every second or so.
  void EndStalled(absl::Time now);

  // Listening::ReloadCertificates. To be called every second or so.
  std::vector<Listening::Reloaded> ReloadCertificates() { return listening_.ReloadCertificates(); }

  // Health becomes NOT_SERVING; calls are served as before.
  void AnnounceDrain();
  // Announces the drain, and ends idle streams.
  void BeginDrain();
  // Waits for calls in flight until the deadline; then answers what is left with UNAVAILABLE, stops
  // the scheduler, and closes connections.
  void Shutdown(absl::Time deadline);

 private:
  // The steps of Shutdown, each of which this server and those of users take together.
  void GiveUpWork() { layer_.StopBackground(); }
  void CloseConnections();
  void LetGo();
  GrpcServer(const std::vector<Listener>& listeners, const ServiceContext& services);
  absl::Status Listen();
  template <typename Visit>
  void ForUserServers(Visit visit) {
    if (user_servers_ != nullptr) user_servers_->ForEach(visit);
  }
  // Tells health watchers whether the server takes work.
  void UpdateHealth() ABSL_LOCKS_EXCLUDED(mutex_);

  const ServiceContext services_;
  Listening listening_;
  StreamRegistry streams_;
  AttentionServiceImpl attention_;
  SessionServiceImpl session_;
  LayerServiceImpl layer_;
  ServerServiceImpl server_info_;
  HealthServiceImpl health_;
  const Reflection reflection_;
  ReflectionServiceImpl reflection_service_{reflection_, services_.calls_in_flight};
  std::unique_ptr<CompletionThreads> threads_;
  std::unique_ptr<grpc::Server> server_;
  // The way in for connections of a server without address; else null.
  std::shared_ptr<grpc::experimental::ExternalConnectionAcceptor> door_;
  std::unique_ptr<UserServers> user_servers_;  // of a server with addresses
  Mutex mutex_;
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace attention::server
