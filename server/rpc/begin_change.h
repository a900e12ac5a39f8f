// Requests that change or read whole caches, in order with their steps.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/time/time.h"
#include "server/domain/attention_request.h"
#include "server/session/session_table.h"

namespace attention::server {

// The request's change, of one cache or the first of several.
inline CacheChange& BeginChange(CacheChange::Kind kind, const std::shared_ptr<KvCache>& cache,
                                AttentionRequest* request) {
  CacheChange& change = request->change.emplace();
  change.kind = kind;
  change.device = cache->device();
  change.caches.push_back(cache);
  return change;
}

// The work of changing the page tables of so many caches: 2 us for a layer of some ten thousand
// tokens.
inline absl::Duration WorkOnTables(const KvCache& cache, std::size_t num_caches = 1) {
  return static_cast<double>(num_caches) * cache.num_layers() * absl::Microseconds(2);
}

}  // namespace attention::server
