// The regions of a client, up to a bound. One pool serves all targets: each server that is reached
// by its lane maps the same memory under an id of its own, so that an attempt at another target
// needs no other copy.
//
// Thread-safety: all methods.
#ifndef ATTENTION_CLIENT_INTERNAL_REGION_POOL_H_
#define ATTENTION_CLIENT_INTERNAL_REGION_POOL_H_

#include <atomic>
#include <cstddef>
#include <limits>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/internal/shared_region.h"

namespace attention::client::internal {

class RegionPool {
 public:
  // `max_bytes`: of all regions that are mapped, those that are out of the pool included.
  explicit RegionPool(size_t max_bytes) : max_bytes_(max_bytes) {}

  // A slot in a region that is offered to a server; null when there is no room.
  std::shared_ptr<SharedSlot> Allocate(size_t bytes);
  // The same in any region.
  std::shared_ptr<SharedSlot> AllocateAnywhere(size_t bytes);
  // The slot of a region of the pool in which all these bytes lie; null when there is none.
  std::shared_ptr<SharedSlot> Find(const void* data, size_t bytes) const;

  // Adds a region with room for a few requests of so many bytes, itself of `max_region_bytes` at
  // most. RESOURCE_EXHAUSTED at a bound or when the system gives no memory.
  absl::Status Grow(size_t bytes, size_t max_region_bytes = std::numeric_limits<size_t>::max());
  // Takes the regions out that have abandoned slots. Their memory goes with their last slot.
  void Retire();
  // Takes the regions out that no server knows and nothing lies in.
  void DropUnoffered();

  std::vector<std::shared_ptr<SharedRegion>> regions() const;
  size_t max_bytes() const { return max_bytes_; }
  // Mapped, in the pool or not.
  size_t mapped_bytes() const { return mapped_bytes_->load(); }

 private:
  // Takes the regions out for which `is_kept` does not hold.
  template <typename IsKept>
  void Keep(IsKept is_kept);
  std::shared_ptr<SharedSlot> AllocateIn(size_t bytes, bool is_offered_only);

  const size_t max_bytes_;
  const std::shared_ptr<std::atomic<size_t>> mapped_bytes_ =
      std::make_shared<std::atomic<size_t>>(0);
  mutable absl::Mutex mutex_;
  std::vector<std::shared_ptr<SharedRegion>> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_REGION_POOL_H_
