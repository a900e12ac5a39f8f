#include "client/internal/region_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/status_macros.h"

namespace attention::client::internal {
namespace {

// Enough for what most programs have in flight; mapping it takes some ten milliseconds, once.
constexpr size_t kMinRegionBytes = size_t{32} << 20;
// Requests of the size that did not fit, for which a new region has room.
constexpr size_t kRequestsPerRegion = 4;
constexpr size_t kPageBytes = 4096;

}  // namespace

std::shared_ptr<SharedSlot> RegionPool::AllocateIn(size_t bytes, bool is_offered_only) {
  absl::MutexLock lock(&mutex_);
  for (const std::shared_ptr<SharedRegion>& region : regions_) {
    if (is_offered_only && !region->is_offered()) continue;
    if (std::shared_ptr<SharedSlot> slot = region->Allocate(bytes); slot != nullptr) return slot;
  }
  return nullptr;
}

std::shared_ptr<SharedSlot> RegionPool::Allocate(size_t bytes) {
  return AllocateIn(bytes, /*is_offered_only=*/true);
}

std::shared_ptr<SharedSlot> RegionPool::AllocateAnywhere(size_t bytes) {
  return AllocateIn(bytes, /*is_offered_only=*/false);
}

std::shared_ptr<SharedSlot> RegionPool::Find(const void* data, size_t bytes) const {
  absl::MutexLock lock(&mutex_);
  for (const std::shared_ptr<SharedRegion>& region : regions_) {
    if (std::shared_ptr<SharedSlot> slot = region->Find(data, bytes); slot != nullptr) return slot;
  }
  return nullptr;
}

absl::Status RegionPool::Grow(size_t bytes, size_t max_region_bytes) {
  const size_t mapped = mapped_bytes();
  const size_t left = mapped < max_bytes_ ? max_bytes_ - mapped : 0;
  const size_t room = std::min(left, max_region_bytes) / kPageBytes * kPageBytes;
  if (bytes > room || room == 0) {
    return absl::ResourceExhaustedError(absl::StrCat("shared_memory.max_bytes is ", max_bytes_,
                                                     ", of which ", mapped, " are mapped; ", bytes,
                                                     " more do not fit"));
  }
  // `bytes` is at most `room`, far from what would overflow here.
  const size_t wanted = std::max(kMinRegionBytes, bytes * kRequestsPerRegion);
  const size_t size = std::min((wanted + kPageBytes - 1) / kPageBytes * kPageBytes, room);
  ATTN_ASSIGN_OR_RETURN(std::shared_ptr<SharedRegion> region,
                        SharedRegion::Create(size, mapped_bytes_));
  absl::MutexLock lock(&mutex_);
  regions_.push_back(std::move(region));
  return absl::OkStatus();
}

template <typename IsKept>
void RegionPool::Keep(IsKept is_kept) {
  // Let go of without the lock: the last reference unmaps.
  std::vector<std::shared_ptr<SharedRegion>> dropped;
  absl::MutexLock lock(&mutex_);
  const auto begin = std::stable_partition(regions_.begin(), regions_.end(),
                                           [&](const auto& region) { return is_kept(*region); });
  dropped.assign(begin, regions_.end());
  regions_.erase(begin, regions_.end());
}

void RegionPool::Retire() {
  Keep([](const SharedRegion& region) { return !region.has_abandoned_slots(); });
}

void RegionPool::DropUnoffered() {
  Keep([](const SharedRegion& region) { return region.is_offered() || region.used_bytes() > 0; });
}

std::vector<std::shared_ptr<SharedRegion>> RegionPool::regions() const {
  absl::MutexLock lock(&mutex_);
  return regions_;
}

}  // namespace attention::client::internal
