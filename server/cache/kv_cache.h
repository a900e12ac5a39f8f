// The key/value cache of one session: a page table and a length for each layer.
//
// Thread-safety: one thread at a time (the session's worker) may call what changes it; the getters
// that say so may be called from any thread. Destruction may happen on any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/api/attention_backend.h"
#include "kernels/api/paged_kv_view.h"
#include "server/cache/page_pool.h"
#include "server/domain/tenant_ledger.h"
#include "server/domain/tenant_mark.h"

namespace attention::server {

// The tenant whose the pages of a cache are, and who counts those on devices. Null: nobody does.
struct CacheOwner {
  std::string tenant = {};
  TenantLedger* ledger = nullptr;
};

class KvCache {
 public:
  // Chooses the page size: the largest halving of `preferred_page_size` (a multiple of
  // kPageGranularity) whose page fits a chunk of the pool. INVALID_ARGUMENT when not even the
  // smallest page fits. `pool` must outlive the cache.
  static absl::StatusOr<KvPageLayout> ChooseLayout(const BackendDescription& backend,
                                                   const KvGeometry& geometry,
                                                   std::int64_t preferred_page_size,
                                                   std::size_t chunk_bytes);

  // `device`: the index of the one whose memory the pool has. The owner's ledger must outlive the
  // cache.
  KvCache(PagePool& pool, int device, const KvGeometry& geometry, const KvPageLayout& layout,
          int num_layers, CacheOwner owner = {});
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  int device() const { return device_; }
  const KvGeometry& geometry() const { return geometry_; }
  // True when the device has lost what the cache held: nothing can be read or appended any more.
  // Pages that have been spilled are not lost with the device. Any thread.
  bool is_lost() const {
    const int generation = generation_.load(std::memory_order_acquire);
    return generation != kOnHost && generation != pool_.generation();
  }
  int num_layers() const { return static_cast<int>(layers_.size()); }

  // Tokens in the layer. Any thread.
  std::int64_t length(int layer) const {
    return layers_[layer].length.load(std::memory_order_acquire);
  }
  // The least length of all layers. Any thread.
  std::int64_t committed_length() const;
  // Bytes of pages held, wherever they are. Any thread.
  std::int64_t kv_bytes() const { return kv_bytes_.load(std::memory_order_relaxed); }

  // Makes sure the layer's pages hold `new_length` tokens. RESOURCE_EXHAUSTED KV_EXHAUSTED, or
  // QUOTA_EXCEEDED when the owner may not have so many, leaves the cache as it was.
  absl::Status Extend(int layer, std::int64_t new_length);
  // Counts a token for each of the checksums of rows that follow; the layer's pages have room.
  void Append(int layer, std::span<const std::uint32_t> checksums);
  // Forgets the tokens from there on. The pages stay.
  void TakeBack(int layer, std::int64_t length);
  // True when the tokens from `position` on, which the layer has, were appended with these.
  bool Holds(int layer, std::int64_t position, std::span<const std::uint32_t> checksums) const;

  // The bytes that the layer's pages lack for so many tokens.
  std::size_t MissingBytes(int layer, std::int64_t new_length) const;
  // The part of so many bytes more on devices that the owner may not have.
  std::size_t ExcessBytes(std::size_t bytes) const;
  bool HasOwnerOf(const KvCache& other) const { return mark_ == other.mark_; }

  // Valid until the next Extend of the layer, or Spill.
  PagedKvView View(int layer) const;

  // Moves the pages to the host's memory, from where Restore brings them back with the same bits;
  // until then nothing can be read or appended. RESOURCE_EXHAUSTED when `to`, which must outlive
  // the cache, has no room, or the backend's error; the cache is as it was then.
  absl::Status Spill(AttentionBackend& backend, PagePool& to);
  // RESOURCE_EXHAUSTED KV_EXHAUSTED or QUOTA_EXCEEDED, or the backend's error, leaves the pages on
  // the host.
  absl::Status Restore(AttentionBackend& backend);
  // Any thread.
  bool is_spilled() const { return generation_.load(std::memory_order_acquire) == kOnHost; }

  // Work in progress reads or writes the pages: they stay where they are. The worker's thread.
  void Pin(absl::Time now) {
    ++num_pins_;
    last_used_ = now;
  }
  void Unpin(absl::Time now) {
    --num_pins_;
    last_used_ = now;
  }
  bool is_pinned() const { return num_pins_ > 0; }
  absl::Time last_used() const { return last_used_; }

 private:
  // Stands for the host's memory in place of a generation of the device's pool.
  static constexpr int kOnHost = -1;

  struct Layer {
    std::vector<void*> pages;
    std::atomic<std::int64_t> length{0};
    std::vector<std::uint32_t> checksums;  // of the tokens' rows
  };

  // Takes a page from `to` for each page that holds tokens, layer by layer. Empty, and nothing
  // taken, when it has not so many.
  std::vector<std::vector<void*>> TakePages(PagePool& to) const;
  void FreeAll(const std::vector<std::vector<void*>>& pages, PagePool& pool, int generation) const;
  absl::Status Charge(std::size_t bytes);
  void GiveBack(std::size_t bytes);
  std::vector<PageCopy> PairPages(const std::vector<std::vector<void*>>& others,
                                  bool are_pages) const;
  void FreePages();
  // Gives all pages back, and has these in their place.
  void ReplacePages(std::vector<std::vector<void*>> pages, PagePool* host_pool);

  PagePool& pool_;
  const int device_;
  const CacheOwner owner_;
  const TenantMark mark_;
  std::size_t charged_bytes_ = 0;
  std::atomic<int> generation_;    // of the pool, when the pages came from there
  PagePool* host_pool_ = nullptr;  // whose the pages are, when they are on the host
  int num_pins_ = 0;
  absl::Time last_used_ = absl::InfinitePast();
  const KvGeometry geometry_;
  const KvPageLayout layout_;
  std::vector<Layer> layers_;
  std::atomic<std::int64_t> kv_bytes_{0};
};

}  // namespace attention::server
