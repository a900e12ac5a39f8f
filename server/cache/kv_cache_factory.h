// Makes the caches of new sessions: checks that the backend can store them and the pool hold them.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "server/cache/kv_cache.h"

namespace attention::server {

class KvCacheFactory {
 public:
  // The references must outlive the factory. `page_size`: preferred tokens of a page, a multiple of
  // kPageGranularity.
  KvCacheFactory(const AttentionBackend& backend, PagePool& pool, std::int64_t page_size)
      : backend_(backend), pool_(pool), page_size_(page_size) {}

  // INVALID_ARGUMENT names the field of the geometry; RESOURCE_EXHAUSTED KV_EXHAUSTED when the pool
  // could not hold `expected_tokens` in every layer now.
  absl::StatusOr<std::shared_ptr<KvCache>> Create(const KvGeometry& geometry, int num_layers,
                                                  std::int64_t expected_tokens) const;

  const PagePool& pool() const { return pool_; }

 private:
  absl::Status CheckRoom(const KvPageLayout& layout, int num_layers,
                         std::int64_t expected_tokens) const;

  const AttentionBackend& backend_;
  PagePool& pool_;
  const std::int64_t page_size_;
};

}  // namespace attention::server
