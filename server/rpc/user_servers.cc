#include "server/rpc/user_servers.h"

#include <sys/socket.h>

#include "absl/strings/str_cat.h"
#include "server/rpc/grpc_server.h"

namespace attention::server {
namespace {

// Each has threads of its own, so a file that maps thousands of users to tenants must not start
// thousands: those beyond are asked for a token like callers by TCP.
constexpr std::size_t kMaxServers = 64;

}  // namespace

UserServers::UserServers(const ServiceContext& services, Start start)
    : services_(services), start_(std::move(start)) {}

UserServers::~UserServers() = default;

bool UserServers::Take(int fd) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  const std::optional<Identity> identity = services_.authenticator.OfUser(peer.uid, peer.gid);
  if (!identity) return false;
  MutexLock lock(&mutex_);
  GrpcServer* server = ServerOf(*identity);
  if (server == nullptr) return false;
  server->Admit(fd);
  return true;
}

GrpcServer* UserServers::ServerOf(const Identity& identity) {
  for (const auto& user : users_) {
    if (user->identity == identity) return user->server.get();
  }
  if (users_.size() >= kMaxServers) {
    services_.warn(absl::StrCat("the users at unix sockets have more than ", kMaxServers,
                                " identities: further ones need a token"));
    return nullptr;
  }
  auto user = std::make_unique<User>();
  user->identity = identity;
  ServiceContext services = services_;
  services.of_connections = &user->identity;
  services.limits.num_completion_threads = 1;
  user->server = start_(services);
  if (user->server == nullptr) return nullptr;
  users_.push_back(std::move(user));
  return users_.back()->server.get();
}

}  // namespace attention::server
