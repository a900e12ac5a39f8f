// Binds the addresses of a gRPC server, each with its own settings.
#pragma once

#include <grpcpp/server_builder.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/base/listener.h"

namespace attention::server {

class Listening {
 public:
  explicit Listening(std::vector<Listener> listeners);

  // Adds every address to the builder. INVALID_ARGUMENT names the file that cannot be read.
  absl::Status AddTo(grpc::ServerBuilder& builder);

  // After the server was built: checks that each address is bound and sets the modes of unix
  // sockets. UNAVAILABLE names the address that is not. `has_started`: whether there is a server.
  absl::Status Finish(bool has_started);

  // With the ports that were picked. After Finish.
  std::vector<std::string> addresses() const;

 private:
  std::vector<Listener> listeners_;
  std::vector<int> ports_;  // -1: not bound
};

}  // namespace attention::server
