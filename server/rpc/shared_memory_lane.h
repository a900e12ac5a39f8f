// The socket beside gRPC's where clients on this host register shared memory: the protocol of
// attention/v1/shared_memory.proto.
//
// A connection is a lease: when it ends, its regions are released. One thread serves all
// connections; it does nothing but map and unmap.
//
// Thread-safety: none; the table is shared.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "server/base/listen_socket.h"
#include "server/base/listener.h"
#include "server/shared_memory/region_table.h"

namespace attention::server {

class SharedMemoryLane {
 public:
  // Listens at a unix socket (ListenSocket::BindUnix). UNAVAILABLE when it cannot be bound.
  // `worker_epoch` tells clients whose lane it is. `regions` must outlive the lane.
  static absl::StatusOr<std::unique_ptr<SharedMemoryLane>> Start(const Listener& listener,
                                                                 int max_connections,
                                                                 std::uint64_t worker_epoch,
                                                                 RegionTable& regions);
  // Ends every lease.
  ~SharedMemoryLane();
  SharedMemoryLane(const SharedMemoryLane&) = delete;
  SharedMemoryLane& operator=(const SharedMemoryLane&) = delete;

  const std::string& path() const { return path_; }

 private:
  using RegionIds = std::set<std::string>;

  SharedMemoryLane(std::string path, ListenSocket socket, int stop_fd, int max_connections,
                   std::uint64_t worker_epoch, RegionTable& regions);

  void Serve();
  void Accept();
  // False when the connection has ended.
  bool HandlePacket(int fd);
  void Close(int fd);

  const std::string path_;
  const ListenSocket listen_socket_;
  const int stop_fd_;  // an eventfd: readable when the lane is to end
  const std::size_t max_connections_;
  const std::uint64_t worker_epoch_;
  RegionTable& regions_;
  std::map<int, RegionIds> connections_;  // by descriptor
  std::thread thread_;
};

}  // namespace attention::server
