// The shared-memory lanes of a client: for each target whose server is on this host and offers one,
// the connection, and the ids under which that server knows the client's regions.
//
// Calls never wait for a lane. One that finds no room, or no lane, says so (Allocate) and travels
// as a message; a thread of this object's, which is started by the first that does, then asks the
// targets for their lanes, makes and offers memory, and sees at once when a connection ends. What
// fails is tried again after a second at the earliest, then less and less often.
//
// Thread-safety: all methods.
#ifndef ATTENTION_CLIENT_INTERNAL_SHARED_LANES_H_
#define ATTENTION_CLIENT_INTERNAL_SHARED_LANES_H_

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
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/internal/lane_connection.h"
#include "client/internal/region_pool.h"
#include "client/internal/targets.h"
#include "client/options.h"
#include "client/shared_tensor.h"

namespace attention::client::internal {

class SharedLanes {
 public:
  // `targets` must outlive this.
  SharedLanes(const ClientOptions& options, Targets& targets);
  // Ends the leases; waits for the thread, which is interrupted.
  ~SharedLanes();
  SharedLanes(const SharedLanes&) = delete;
  SharedLanes& operator=(const SharedLanes&) = delete;

  // A slot that a server knows; null when there is none, which is seen to.
  std::shared_ptr<SharedSlot> Allocate(size_t bytes);
  // A slot for a user's tensor, of a server's knowledge or not yet. RESOURCE_EXHAUSTED: at the
  // bound.
  absl::StatusOr<std::shared_ptr<SharedSlot>> AllocateForUser(size_t bytes);
  std::shared_ptr<SharedSlot> Find(const void* data, size_t bytes) const {
    return pool_.Find(data, bytes);
  }
  // Whether memory was ever made, so that Find is worth its while.
  bool has_memory() const { return pool_.mapped_bytes() > 0; }

  // What the target's server calls the region; nullopt when it does not know it.
  std::optional<std::string> RegionId(size_t target, const SharedRegion& region) const;
  // The target's server has said that it does not know a region of this id: another server now
  // listens there, or it has ended the lease.
  void OnRegionLost(size_t target, const std::string& region_id);

  // Blocks until each target's lane was tried once, or the deadline has passed.
  void WaitUntilTried(absl::Time deadline);

  // For who wants to know whether the lanes are used.
  void CountRequest() { num_requests_.fetch_add(1, std::memory_order_relaxed); }
  SharedMemoryUsage usage() const;

  const RegionPool& pool() const { return pool_; }
  // Targets with a lane.
  size_t num_lanes() const;

 private:
  struct KnownRegion {
    std::shared_ptr<const SharedRegion> region;  // kept, so that its address names it
    std::string id;
  };
  using RegionIds = absl::flat_hash_map<const SharedRegion*, KnownRegion>;

  struct Lane {
    std::shared_ptr<LaneConnection> connection;  // null: none. The thread's to call
    uint64_t worker_epoch = 0;                   // of the server that it belongs to
    RegionIds ids;
    bool is_lost = false;  // to be dropped by the thread
  };

  // Asks the thread for a round, with room for so many bytes; unless it was in vain a while ago.
  void Want(size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Wake(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdateOffered() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The rest is the thread's.
  void Serve();
  // Waits for a wish or the end of a connection; false when this is being destroyed.
  bool AwaitWork();
  void DropLane(size_t target);
  // One round for so many bytes: true when there are lanes and room.
  bool Work(size_t bytes);
  void OpenLanes();
  void OpenLane(size_t target);
  // Makes room that a server knows.
  bool MakeRoom(size_t bytes);
  // Offers every region to every lane that does not know it; the first refusal, if any.
  absl::Status OfferRegions();
  absl::Status Offer(size_t target, const std::shared_ptr<SharedRegion>& region);
  void ReleaseRetired();
  std::vector<size_t> OpenTargets() const;
  std::shared_ptr<LaneConnection> ConnectionOf(size_t target) const;

  std::atomic<int64_t> num_requests_ = 0;
  const std::string tenant_;
  Targets& targets_;
  RegionPool pool_;
  const int wake_fd_;        // an eventfd; negative when there is none, and then there are no lanes
  size_t max_region_bytes_;  // the largest that was not refused; the thread's

  mutable absl::Mutex mutex_;
  std::vector<Lane> lanes_ ABSL_GUARDED_BY(mutex_);  // by target
  size_t wanted_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_tried_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time retry_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Duration backoff_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* calling_ ABSL_GUARDED_BY(mutex_) = nullptr;  // the thread's call
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_SHARED_LANES_H_
