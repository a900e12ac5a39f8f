// The addresses of a gRPC server: binds them, accepts at them and hands gRPC the connections.
//
// Thread-safety: none.
#pragma once

#include <grpcpp/server_builder.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/listener/listen_socket.h"
#include "server/listener/listener.h"
#include "server/listener/served_certificate.h"
#include "server/rpc/acceptor.h"
#include "server/rpc/prober.h"

namespace attention::server {

class Listening {
 public:
  struct Reloaded {
    std::string address;
    absl::Status status;
  };

  explicit Listening(std::vector<Listener> listeners);

  // Binds every address and tells the builder. INVALID_ARGUMENT names the file that cannot be read,
  // UNAVAILABLE the address that cannot be bound.
  absl::Status AddTo(grpc::ServerBuilder& builder);

  // Accepts from now on, and calls the server at each address now and then to see whether it serves
  // (Prober). To be called once the server has been built. `take` is offered each connection of a
  // unix socket, except the server's own, and may take it over. Other arguments are as in Acceptor
  // and Prober.
  void Start(std::function<bool(int fd)> take, Connections& connections, ServerMetrics& metrics,
             Acceptor::Warn warn, ListenerHealth& health, std::function<void()> after_each_probe);

  // Takes the certificates that have changed; tells of each listener whose have: OK when they serve
  // from now on, an error when those before them still do. From one thread, between Start and Stop.
  std::vector<Reloaded> ReloadCertificates();

  // Accepts no more and lets the addresses go. Before the server is shut down.
  void Stop();

  bool has_listeners() const { return !listeners_.empty(); }
  // With the ports that were picked. After AddTo.
  const std::vector<std::string>& addresses() const { return addresses_; }

 private:
  using GrpcAcceptor = grpc::experimental::ExternalConnectionAcceptor;

  absl::Status Add(const Listener& listener, grpc::ServerBuilder& builder);
  absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(const Listener& listener);

  const std::vector<Listener> listeners_;
  std::vector<std::string> addresses_;
  struct Served {
    std::string address;
    std::unique_ptr<ServedCertificate> certificate;
  };
  std::vector<Served> served_;  // by listeners with TLS
  std::vector<ListenSocket> sockets_;
  std::vector<Prober::Target> probed_;                         // one for each socket
  std::vector<std::shared_ptr<GrpcAcceptor>> grpc_acceptors_;  // one for each socket
  ProbeAddresses own_addresses_;
  std::unique_ptr<Acceptor> acceptor_;
  std::unique_ptr<Prober> prober_;
};

}  // namespace attention::server
