#include "client/internal/shared_memory/region_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace attention::client::internal {
namespace {

// Enough for what most programs have in flight; mapping it takes some ten milliseconds, once.
constexpr std::size_t kMinRegionBytes = std::size_t{32} << 20;
// Requests of the size that did not fit, for which a new region has room.
constexpr std::size_t kRequestsPerRegion = 4;
constexpr std::size_t kPageBytes = 4096;

}  // namespace

template <typename IsWanted>
std::shared_ptr<SharedSlot> RegionPool::AllocateIn(std::size_t bytes, IsWanted is_wanted) {
  absl::MutexLock lock(&mutex_);
  for (const std::shared_ptr<SharedRegion>& region : regions_) {
    if (!is_wanted(*region)) continue;
    if (std::shared_ptr<SharedSlot> slot = region->Allocate(bytes); slot != nullptr) return slot;
  }
  return nullptr;
}

std::shared_ptr<SharedSlot> RegionPool::Allocate(std::size_t target, std::size_t bytes) {
  return AllocateIn(bytes,
                    [target](const SharedRegion& region) { return region.target() == target; });
}

std::shared_ptr<SharedSlot> RegionPool::AllocateAnywhere(std::size_t bytes) {
  return AllocateIn(bytes, [](const SharedRegion&) { return true; });
}

std::shared_ptr<SharedSlot> RegionPool::Find(const void* data, std::size_t bytes) const {
  absl::MutexLock lock(&mutex_);
  for (const std::shared_ptr<SharedRegion>& region : regions_) {
    if (std::shared_ptr<SharedSlot> slot = region->Find(data, bytes); slot != nullptr) return slot;
  }
  return nullptr;
}

bool RegionPool::Has(std::size_t target) const {
  absl::MutexLock lock(&mutex_);
  return std::any_of(regions_.begin(), regions_.end(),
                     [target](const auto& region) { return region->target() == target; });
}

absl::StatusOr<std::size_t> RegionPool::NextSize(std::size_t bytes,
                                                 std::size_t max_region_bytes) const {
  const std::size_t mapped = mapped_bytes();
  const std::size_t left = mapped < max_bytes_ ? max_bytes_ - mapped : 0;
  const std::size_t room = std::min(left, max_region_bytes) / kPageBytes * kPageBytes;
  if (bytes > room || room == 0) {
    return absl::ResourceExhaustedError(absl::StrCat("shared_memory.max_bytes is ", max_bytes_,
                                                     ", of which ", mapped, " are mapped; ", bytes,
                                                     " more do not fit"));
  }
  // `bytes` is at most `room`, far from what would overflow here.
  const std::size_t wanted = std::max(kMinRegionBytes, bytes * kRequestsPerRegion);
  return std::min((wanted + kPageBytes - 1) / kPageBytes * kPageBytes, room);
}

void RegionPool::Add(std::shared_ptr<SharedRegion> region) {
  absl::MutexLock lock(&mutex_);
  regions_.push_back(std::move(region));
}

template <typename IsTaken>
std::vector<std::shared_ptr<SharedRegion>> RegionPool::Take(IsTaken is_taken) {
  std::vector<std::shared_ptr<SharedRegion>> taken;
  absl::MutexLock lock(&mutex_);
  const auto begin = std::stable_partition(regions_.begin(), regions_.end(),
                                           [&](const auto& region) { return !is_taken(*region); });
  taken.assign(begin, regions_.end());
  regions_.erase(begin, regions_.end());
  for (const std::shared_ptr<SharedRegion>& region : taken) region->SetUnusable();
  return taken;
}

std::vector<std::shared_ptr<SharedRegion>> RegionPool::TakeAbandoned(std::size_t target) {
  return Take([target](const SharedRegion& region) {
    return region.target() == target && region.has_abandoned_slots();
  });
}

std::vector<std::shared_ptr<SharedRegion>> RegionPool::TakeAll(std::size_t target) {
  return Take([target](const SharedRegion& region) { return region.target() == target; });
}

std::vector<std::shared_ptr<SharedRegion>> RegionPool::regions() const {
  absl::MutexLock lock(&mutex_);
  return regions_;
}

}  // namespace attention::client::internal
