// Makes the caches of new sessions: checks that they can be stored, and chooses the device that has
// the most room.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/api/backend_description.h"
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
  // preferred tokens of a page, a multiple of kPageGranularity.
  KvCacheFactory(std::vector<Place> places, std::int64_t page_size)
      : places_(std::move(places)), page_size_(page_size) {}

  // INVALID_ARGUMENT names the field of the geometry; RESOURCE_EXHAUSTED KV_EXHAUSTED when no
  // device could hold `expected_tokens` in every layer now.
  absl::StatusOr<std::shared_ptr<KvCache>> Create(const KvGeometry& geometry, int num_layers,
                                                  std::int64_t expected_tokens) const;

  // The bytes of all devices together.
  std::int64_t capacity_bytes() const;
  std::int64_t free_bytes() const;
  std::int64_t used_bytes() const;

 private:
  absl::StatusOr<int> ChoosePlace(const AttentionParams& params,
                                  std::int64_t expected_tokens) const;
  static absl::Status CheckRoom(const Place& place, const KvPageLayout& layout, int num_layers,
                                std::int64_t expected_tokens);

  const std::vector<Place> places_;
  const std::int64_t page_size_;
};

}  // namespace attention::server
