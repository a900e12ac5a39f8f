// Keeps the caches in use on their device: brings back those that were moved to the host, and makes
// room by moving others that are idle (spill_policy.h).
//
// Thread-safety: the worker's thread alone, as for the caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/api/attention_backend.h"
#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/cache/cache_list.h"
#include "server/cache/kv_cache.h"
#include "server/cache/page_pool.h"

namespace attention::server {

class Spiller {
 public:
  // The references must outlive it. `pages`: of the device, `host_pages`: where they are moved to,
  // from caches that have been idle for `min_idle`.
  Spiller(AttentionBackend& backend, const PagePool& pages, PagePool& host_pages,
          const CacheList& caches, absl::Duration min_idle, const Clock& clock,
          ServerMetrics& metrics)
      : backend_(backend),
        pages_(pages),
        host_pages_(host_pages),
        caches_(caches),
        min_idle_(min_idle),
        clock_(clock),
        metrics_(metrics) {}

  // The cache is on the device and stays there until as many calls of Release. RESOURCE_EXHAUSTED
  // KV_EXHAUSTED when there is no room and nobody idle, QUOTA_EXCEEDED when the owner is at its
  // limit and nothing of its own is idle, or the backend's error; not held then.
  absl::Status Hold(KvCache& cache);
  void Release(KvCache& cache) { cache.Unpin(clock_.Now()); }

  // Makes room for appends to the layer, as KvCache::OwnTail and KvCache::Extend do. The cache must
  // be held.
  absl::Status Extend(KvCache& cache, int layer, std::int64_t new_length);
  // The same for the copies that KvCache::Keep makes.
  absl::Status Keep(KvCache& cache, std::span<const LayerKeep> keep,
                    PageTables::Positions positions);

 private:
  // Returns the result of `attempt`, for which the cache takes so many bytes and which is made
  // again after each cache that makes room for it.
  absl::Status WithRoom(const KvCache& cache, std::size_t bytes,
                        absl::FunctionRef<absl::Status()> attempt);
  // An owner at its limit makes room from its own caches.
  absl::Status MakeRoomForOwner(const KvCache& cache, std::size_t bytes);
  // OK also when the host has no room for it.
  absl::Status SpillIfItFits(KvCache& victim, bool* is_spilled);
  // Those that would make `bytes` free, of the owner of `cache` if it is not null.
  std::vector<std::shared_ptr<KvCache>> ChooseVictims(std::size_t bytes,
                                                      const KvCache* cache = nullptr) const;

  AttentionBackend& backend_;
  const PagePool& pages_;
  PagePool& host_pages_;
  const CacheList& caches_;
  const absl::Duration min_idle_;
  const Clock& clock_;
  ServerMetrics& metrics_;
};

}  // namespace attention::server
