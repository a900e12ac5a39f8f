// The key/value cache of one session: a page table and a length for each layer.
//
// Thread-safety: one thread at a time (the session's worker) may call Extend and SetLength; the
// getters that say so may be called from any thread. Destruction may happen on any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/paged_kv_view.h"
#include "server/cache/page_pool.h"

namespace attention::server {

class KvCache {
 public:
  // Chooses the page size: the largest halving of `preferred_page_size` (a multiple of
  // kPageGranularity) whose page fits a chunk of the pool. INVALID_ARGUMENT when not even the
  // smallest page fits. `pool` must outlive the cache.
  static absl::StatusOr<KvPageLayout> ChooseLayout(const AttentionBackend& backend,
                                                   const KvGeometry& geometry,
                                                   std::int64_t preferred_page_size,
                                                   std::size_t chunk_bytes);

  // `device`: the index of the one whose memory the pool has.
  KvCache(PagePool& pool, int device, const KvGeometry& geometry, const KvPageLayout& layout,
          int num_layers);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  int device() const { return device_; }
  const KvGeometry& geometry() const { return geometry_; }
  // Whether the device has lost what the cache held: nothing can be read or appended any more. Any
  // thread.
  bool is_lost() const { return generation_ != pool_.generation(); }
  int num_layers() const { return static_cast<int>(layers_.size()); }

  // Tokens in the layer. Any thread.
  std::int64_t length(int layer) const {
    return layers_[layer].length.load(std::memory_order_acquire);
  }
  // The least length of all layers. Any thread.
  std::int64_t committed_length() const;
  // Bytes of pages held. Any thread.
  std::int64_t kv_bytes() const { return kv_bytes_.load(std::memory_order_relaxed); }

  // Makes sure the layer's pages hold `new_length` tokens. RESOURCE_EXHAUSTED KV_EXHAUSTED leaves
  // the cache as it was.
  absl::Status Extend(int layer, std::int64_t new_length);
  void SetLength(int layer, std::int64_t length) {
    layers_[layer].length.store(length, std::memory_order_release);
  }

  // Valid until the next Extend of the layer.
  PagedKvView View(int layer) const;

 private:
  struct Layer {
    std::vector<void*> pages;
    std::atomic<std::int64_t> length{0};
  };

  PagePool& pool_;
  const int device_;
  const int generation_;  // of the pool
  const KvGeometry geometry_;
  const KvPageLayout layout_;
  std::vector<Layer> layers_;
  std::atomic<std::int64_t> kv_bytes_{0};
};

}  // namespace attention::server
