// The shared-memory channels of a client: for each target whose server is on this host and offers
// one, the socket over which that server makes the client's regions.
//
// Calls never wait for a channel. A call that finds no room, or no channel, travels as a message
// (Allocate returns null). The first such call starts a thread of this object, which asks the
// targets for their channels and for memory, and sees at once when a connection ends. A failed
// round is repeated after a second at the earliest, then less and less often.
//
// Thread-safety: all methods.
#pragma once

#include <grpcpp/client_context.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "attention/client/shared_tensor.h"
#include "client/internal/call/transport.h"
#include "client/internal/shared_memory/region_pool.h"
#include "client/internal/shared_memory/shared_memory_socket.h"

namespace attention::client::internal {

class SharedMemoryChannels {
 public:
  explicit SharedMemoryChannels(std::shared_ptr<Transport> transport);
  // Ends the leases, but for those of results that are held; waits for the thread, which is
  // interrupted.
  ~SharedMemoryChannels();
  SharedMemoryChannels(const SharedMemoryChannels&) = delete;
  SharedMemoryChannels& operator=(const SharedMemoryChannels&) = delete;

  // A slot that the target's server knows; null when there is none, and then the thread asks for
  // memory.
  std::shared_ptr<SharedSlot> Allocate(std::size_t target, std::size_t bytes);
  // A slot for a user's tensor, in the memory of a server; null when there is none. May wait for
  // that server, two seconds at most, unless it has lately refused.
  std::shared_ptr<SharedSlot> AllocateForUser(std::size_t bytes);
  std::shared_ptr<SharedSlot> Find(const void* data, std::size_t bytes) const {
    return pool_.Find(data, bytes);
  }
  // True if memory was ever made, so that Find may find something.
  bool has_memory() const { return pool_.mapped_bytes() > 0; }

  // The target's server's name for the region; nullopt when it does not know it.
  static std::optional<std::string> RegionId(std::size_t target, const SharedRegion& region);
  // The target's server has said that it does not know a region of this id: another server now
  // listens there, or it has ended the lease.
  void OnRegionLost(std::size_t target, const std::string& region_id);

  // Blocks until each target's channel was tried once, or the deadline has passed.
  void WaitUntilTried(absl::Time deadline);

  // Counts one request that was sent by shared memory.
  void CountRequest() { num_requests_.fetch_add(1, std::memory_order_relaxed); }
  SharedMemoryUsage usage() const;

  const Transport& transport() const { return *transport_; }
  const RegionPool& pool() const { return pool_; }
  // Targets with a channel.
  std::size_t num_channels() const;

 private:
  struct Channel {
    std::shared_ptr<SharedMemorySocket> socket;  // null without one; only the thread calls it
    std::uint64_t server_epoch = 0;              // of the server that it belongs to
    std::string tenant = {};                     // whose regions are to be made there
    std::size_t wanted_bytes = 0;                // in one piece, by the next round
    bool is_lost = false;                        // to be dropped by the thread
  };

  // Asks the thread for a round that makes room for so many bytes, unless the last one failed a
  // short while ago.
  void AskForRoom(std::size_t target, std::size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void RequestRound(std::size_t target, std::size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // These are called on the thread.
  void Serve();
  // Waits until a round is asked for, and drops channels whose connection ends; false when this is
  // being destroyed.
  bool AwaitRound();
  void DropChannel(std::size_t target);
  // Opens channels and makes room: true when there are channels and room.
  bool RunRound();
  void OpenChannels();
  void OpenChannel(std::size_t target);
  // Makes room for a piece of so many bytes in the memory of the target's server; false if it
  // refuses.
  bool MakeRoom(std::size_t target, std::size_t bytes);
  // The token that goes to the socket; empty for none.
  absl::StatusOr<std::string> TokenFor(const SharedMemorySocket& socket) const;
  // Asks the server for a region. Returns its refusal; UNAVAILABLE when the channel is gone.
  absl::Status AddRegion(std::size_t target, std::size_t bytes);
  // Gives back the regions of which nobody holds a slot any more.
  void ReleaseRetired();
  std::vector<std::size_t> OpenTargets() const;
  std::shared_ptr<SharedMemorySocket> SocketOf(std::size_t target) const;

  std::atomic<std::int64_t> num_requests_ = 0;
  const std::shared_ptr<Transport> transport_;
  Targets& targets_;
  RegionPool pool_;
  const int wake_fd_;  // an eventfd; negative when there is none; then there are no channels
  std::size_t max_region_bytes_;  // the largest that was not refused; used by the thread alone
  // Regions full of abandoned slots of which some are held; used by the thread alone.
  std::vector<std::shared_ptr<SharedRegion>> retired_;

  mutable absl::Mutex mutex_;
  std::vector<Channel> channels_ ABSL_GUARDED_BY(mutex_);  // by target
  bool is_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  std::int64_t num_rounds_ ABSL_GUARDED_BY(mutex_) = 0;  // completed
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time retry_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Duration backoff_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* calling_ ABSL_GUARDED_BY(mutex_) = nullptr;  // the thread's call
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::client::internal
