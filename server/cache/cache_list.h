// The caches on a device, for who looks for pages that are not in use.
//
// Thread-safety: all methods.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"

namespace attention::server {

class KvCache;

class CacheList {
 public:
  void Add(const std::shared_ptr<KvCache>& cache) {
    MutexLock lock(&mutex_);
    // Caches that are gone are dropped when the list has doubled.
    if (caches_.size() >= next_sweep_) {
      std::erase_if(caches_, [](const auto& known) { return known.expired(); });
      next_sweep_ = std::max<std::size_t>(kMinSweep, 2 * caches_.size());
    }
    caches_.push_back(cache);
  }

  // The caches that still exist.
  std::vector<std::shared_ptr<KvCache>> Alive() const {
    std::vector<std::shared_ptr<KvCache>> alive;
    MutexLock lock(&mutex_);
    for (const auto& known : caches_) {
      if (auto cache = known.lock(); cache != nullptr) alive.push_back(std::move(cache));
    }
    return alive;
  }

 private:
  static constexpr std::size_t kMinSweep = 64;

  mutable Mutex mutex_;
  std::vector<std::weak_ptr<KvCache>> caches_ ABSL_GUARDED_BY(mutex_);
  std::size_t next_sweep_ ABSL_GUARDED_BY(mutex_) = kMinSweep;
};

}  // namespace attention::server
