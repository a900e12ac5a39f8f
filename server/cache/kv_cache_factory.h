// Makes the caches of new sessions: checks that they can be stored, and chooses the device that has
// the most room.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "kernels/api/backend_description.h"
#include "server/base/mutex.h"
#include "server/cache/cache_list.h"
#include "server/cache/kv_cache.h"

namespace attention::server {

class KvCacheFactory {
 public:
  // A device as its index in the list knows it.
  struct Place {
    const BackendDescription& backend;
    PagePool& pool;
    CacheList* caches = nullptr;          // is told of those that are made there
    const PagePool* host_pool = nullptr;  // to which idle ones make room; null: they do not
  };

  // At least one place, all of one kind; the references must outlive the factory. `page_size`:
  // preferred tokens of a page, a multiple of kPageGranularity. `ledger` counts the bytes of each
  // tenant on devices; null: nobody does.
  KvCacheFactory(std::vector<Place> places, std::int64_t page_size, TenantLedger* ledger = nullptr)
      : places_(std::move(places)), page_size_(page_size), ledger_(ledger) {}

  // INVALID_ARGUMENT or UNIMPLEMENTED name the field of the geometry; RESOURCE_EXHAUSTED
  // KV_EXHAUSTED when no device could hold `expected_tokens` in every layer now, QUOTA_EXCEEDED
  // when the tenant may not.
  absl::StatusOr<std::shared_ptr<KvCache>> Create(const CacheShape& shape,
                                                  std::int64_t expected_tokens,
                                                  const std::string& tenant = {}) const;
  // The same, with layers of one shape.
  absl::StatusOr<std::shared_ptr<KvCache>> Create(const KvGeometry& geometry, int num_layers,
                                                  std::int64_t expected_tokens,
                                                  const std::string& tenant = {}) const {
    return Create(CacheShape({geometry}, num_layers), expected_tokens, tenant);
  }

  // An empty cache of the same device, owner and shape.
  std::shared_ptr<KvCache> CreateLike(const KvCache& cache) const;

  // The bytes of all devices together.
  std::int64_t capacity_bytes() const;
  std::int64_t free_bytes() const;
  std::int64_t used_bytes() const;
  // The tenant's pages on devices; 0 when nobody counts them.
  std::int64_t used_bytes(const std::string& tenant) const {
    return ledger_ == nullptr ? 0 : ledger_->HeldBy(tenant);
  }

 private:
  absl::StatusOr<int> ChoosePlace(const CacheShape& shape, std::int64_t expected_tokens) const;
  // One that a living cache has, if there is one.
  absl::StatusOr<std::shared_ptr<const CacheLayout>> LayoutOf(const Place& place,
                                                              const CacheShape& shape) const;
  absl::Status CheckRoom(const Place& place, const CacheLayout& layout,
                         std::int64_t expected_tokens, const std::string& tenant) const;

  const std::vector<Place> places_;
  const std::int64_t page_size_;
  TenantLedger* const ledger_;

  // The layouts of the last shapes, so that many sessions of one model have one.
  mutable Mutex mutex_;
  mutable std::deque<std::weak_ptr<const CacheLayout>> last_layouts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
