// gRPC servers for the users of this system that connect to unix sockets.
//
// gRPC does not tell a call whose connection it came through, but the system does (SO_PEERCRED),
// when the connection is accepted. So the connections of each identity go to a gRPC server of its
// own, all of whose calls are that identity's. There are as many as identities that have called.
//
// Thread-safety: all methods.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/auth/authenticator.h"
#include "server/base/mutex.h"
#include "server/rpc/service_context.h"

namespace attention::server {

class GrpcServer;

class UserServers {
 public:
  // `start` makes a server without addresses of its own.
  using Start = std::function<std::unique_ptr<GrpcServer>(const ServiceContext& services)>;

  UserServers(const ServiceContext& services, Start start);
  ~UserServers();

  // Takes the connection over if its user has an identity. False: it is left to the caller.
  bool Take(int fd);

  // Calls `visit(GrpcServer&)` for each server.
  template <typename Visit>
  void ForEach(Visit visit) {
    MutexLock lock(&mutex_);
    for (const auto& user : users_) visit(*user->server);
  }

 private:
  struct User {
    Identity identity;
    std::unique_ptr<GrpcServer> server;
  };

  // The identity's server, started if need be. Null: there are too many.
  GrpcServer* ServerOf(const Identity& identity) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ServiceContext& services_;
  const Start start_;
  Mutex mutex_;
  std::vector<std::unique_ptr<User>> users_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
