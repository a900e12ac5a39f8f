// The regions of a client, up to a bound. Each was made by the server of one target, and is of use
// for requests to that.
//
// Thread-safety: all methods.
#pragma once

#include <atomic>
#include <cstddef>
#include <limits>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/internal/shared_memory/shared_region.h"

namespace attention::client::internal {

class RegionPool {
 public:
  // `max_bytes`: of all regions that are mapped, those that are out of the pool included.
  explicit RegionPool(std::size_t max_bytes) : max_bytes_(max_bytes) {}

  // A slot in a region of the target's server; null when there is no room.
  std::shared_ptr<SharedSlot> Allocate(std::size_t target, std::size_t bytes);
  // The same in any server's.
  std::shared_ptr<SharedSlot> AllocateAnywhere(std::size_t bytes);
  // The slot of a region of the pool in which all these bytes lie; null when there is none.
  std::shared_ptr<SharedSlot> Find(const void* data, std::size_t bytes) const;
  // True if it has a region of the target's server.
  bool Has(std::size_t target) const;

  // How large another region is to be, with room for a few requests of so many bytes, itself of
  // `max_region_bytes` at most. RESOURCE_EXHAUSTED at a bound.
  absl::StatusOr<std::size_t> NextSize(
      std::size_t bytes,
      std::size_t max_region_bytes = std::numeric_limits<std::size_t>::max()) const;
  // The sum of all regions that are mapped; to be given to a region that is made for this.
  const std::shared_ptr<std::atomic<std::size_t>>& counter() const { return mapped_bytes_; }
  void Add(std::shared_ptr<SharedRegion> region);

  // Takes the target's regions out that have abandoned slots, or all of them, and makes them
  // unusable. Their memory goes with their last slot.
  std::vector<std::shared_ptr<SharedRegion>> TakeAbandoned(std::size_t target);
  std::vector<std::shared_ptr<SharedRegion>> TakeAll(std::size_t target);

  std::vector<std::shared_ptr<SharedRegion>> regions() const;
  std::size_t max_bytes() const { return max_bytes_; }
  // Mapped, in the pool or not.
  std::size_t mapped_bytes() const { return mapped_bytes_->load(); }

 private:
  template <typename IsTaken>
  std::vector<std::shared_ptr<SharedRegion>> Take(IsTaken is_taken);
  template <typename IsWanted>
  std::shared_ptr<SharedSlot> AllocateIn(std::size_t bytes, IsWanted is_wanted);

  const std::size_t max_bytes_;
  const std::shared_ptr<std::atomic<std::size_t>> mapped_bytes_ =
      std::make_shared<std::atomic<std::size_t>>(0);
  mutable absl::Mutex mutex_;
  std::vector<std::shared_ptr<SharedRegion>> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::client::internal
