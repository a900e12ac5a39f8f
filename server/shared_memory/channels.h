// The socket beside gRPC's where clients on this host get shared memory: the protocol of
// attention/v1/shared_memory.proto.
//
// A connection is a lease: when it ends, its regions are released. One thread serves all
// connections; memory is made by the table's worker, in turns, and the connection that waits for
// it is not read meanwhile.
//
// Thread-safety: none; the table is shared.
#pragma once

#include <poll.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/v1/shared_memory.pb.h"
#include "server/listener/listen_socket.h"
#include "server/listener/listener.h"
#include "server/shared_memory/region_table.h"

namespace attention::server {

class SharedMemoryChannels {
 public:
  struct Limits {
    // Connections beyond this wait until others end.
    int max_connections = 0;
    // Connections beyond this are refused.
    int max_connections_per_user = 0;
  };

  // The caller, as the system and the request tell.
  struct Caller {
    std::uint32_t user = 0;
    std::uint32_t group = 0;
    const std::string& tenant;  // empty: none is named
    const std::string& token;   // empty: there is none
  };
  // Returns the tenant whose calls may name the caller's memory, or why there is none.
  using TenantOf = std::function<absl::StatusOr<std::string>(const Caller& caller)>;

  // Listens at a unix socket (ListenSocket::BindUnix). UNAVAILABLE when it cannot be bound.
  // `server_epoch` tells clients whose channel it is. `regions` must outlive the object.
  static absl::StatusOr<std::unique_ptr<SharedMemoryChannels>> Start(const Listener& listener,
                                                                     const Limits& limits,
                                                                     std::uint64_t server_epoch,
                                                                     RegionTable& regions,
                                                                     TenantOf tenant_of);
  // Ends every lease.
  ~SharedMemoryChannels();
  SharedMemoryChannels(const SharedMemoryChannels&) = delete;
  SharedMemoryChannels& operator=(const SharedMemoryChannels&) = delete;

  const std::string& path() const { return path_; }

 private:
  // An eventfd that the thread waits on beside its sockets. It may outlive the object.
  class Alarm;
  // A region that is being made.
  struct Making;

  struct Connection {
    RegionTable::Owner owner;
    std::uint32_t group = 0;
    std::set<std::string> region_ids;
    std::shared_ptr<Making> making;  // null: none, and the client may ask
  };

  SharedMemoryChannels(std::string path, ListenSocket socket, std::shared_ptr<Alarm> alarm,
                       const Limits& limits, std::uint64_t server_epoch, RegionTable& regions,
                       TenantOf tenant_of);

  void Serve();
  void ServeOnce();
  // Waits until something happens, and returns what did, by descriptor. The alarm's is the first.
  std::vector<pollfd> AwaitEvents() const;
  void Accept();
  int ConnectionsOf(std::uint32_t user) const;
  // The next three: false when the connection has ended.
  bool Handle(int fd, Connection& connection, short events);
  bool HandlePacket(int fd, Connection& connection);
  bool FinishMaking(int fd, Connection& connection);
  // Answers now, or has a region made, with which the answer comes.
  std::optional<v1::SharedMemoryResponse> Answer(const std::string& packet, Connection& connection);
  std::optional<v1::SharedMemoryResponse> Create(const v1::CreateRegionRequest& request,
                                                 Connection& connection);
  v1::SharedMemoryResponse Release(const v1::ReleaseRegionRequest& request, Connection& connection);
  void Close(int fd);

  const std::string path_;
  const ListenSocket listen_socket_;
  const std::shared_ptr<Alarm> alarm_;
  const Limits limits_;
  const std::uint64_t server_epoch_;
  RegionTable& regions_;
  const TenantOf tenant_of_;
  std::atomic<bool> is_stopping_{false};
  std::map<int, Connection> connections_;  // by descriptor
  std::uint64_t last_number_ = 0;          // of a connection
  absl::Time accept_at_ = absl::InfinitePast();
  std::thread thread_;
};

}  // namespace attention::server
