// The key/value cache of one session: a page table and a length for each layer.
//
// Thread-safety: one thread at a time (the session's worker) may call what changes it; the getters
// that say so may be called from any thread. Destruction may happen on any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/api/attention_backend.h"
#include "kernels/api/paged_kv_view.h"
#include "server/cache/cache_layout.h"
#include "server/cache/page_account.h"
#include "server/cache/page_pool.h"
#include "server/cache/page_tables.h"
#include "server/domain/layer_tokens.h"

namespace attention::server {

class KvCache {
 public:
  // Chooses the page size of a layer: the largest halving of `preferred_page_size` (a multiple of
  // kPageGranularity) whose page fits a chunk of the pool, and is small beside the layer's window.
  // INVALID_ARGUMENT when not even the smallest page fits. `pool` must outlive the cache.
  static absl::StatusOr<KvPageLayout> ChooseLayout(const BackendDescription& backend,
                                                   const LayerShape& layer,
                                                   std::int64_t preferred_page_size,
                                                   std::size_t chunk_bytes);

  // `device`: the index of the one whose memory the pool has. The owner's ledger must outlive the
  // cache.
  KvCache(PagePool& pool, int device, std::shared_ptr<const CacheLayout> layout,
          CacheOwner owner = {});
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  int device() const { return device_; }
  const CacheShape& shape() const { return layout_->shape; }
  const KvGeometry& geometry(int layer) const { return shape().layer(layer).geometry; }
  const std::shared_ptr<const CacheLayout>& layout() const { return layout_; }
  const CacheOwner& owner() const { return account_->owner(); }
  // True when the device has lost what the cache held: nothing can be read or appended any more.
  // Pages that have been spilled are not lost with the device. Any thread.
  bool is_lost() const {
    const int generation = generation_.load(std::memory_order_acquire);
    return generation != kOnHost && generation != account_->pool().generation();
  }
  int num_layers() const { return static_cast<int>(lengths_.size()); }

  // Tokens that were appended to the layer. Any thread.
  std::int64_t length(int layer) const { return lengths_[layer].load(std::memory_order_acquire); }
  // Those of them that it holds. The worker's thread.
  LayerTokens tokens(int layer) const {
    const std::int64_t first = first_position(layer);
    return {length(layer), tables_.num_dropped(layer), tables_.compacted_length(layer),
            first == 0 ? 0 : sink_end(layer), first};
  }
  // The same number, on any thread.
  std::int64_t num_held(int layer) const {
    return num_held_[layer].load(std::memory_order_acquire);
  }
  // The least length of all layers. Any thread.
  std::int64_t committed_length() const;
  // Bytes of the pages that are read for its tokens, wherever they are; those that other caches
  // read too are counted by each of them. Any thread.
  std::int64_t kv_bytes() const { return kv_bytes_.load(std::memory_order_relaxed); }

  // Makes sure the layer's pages hold `new_length` tokens. RESOURCE_EXHAUSTED KV_EXHAUSTED, or
  // QUOTA_EXCEEDED when the owner may not have so many, leaves the cache as it was.
  absl::Status Extend(int layer, std::int64_t new_length);
  // Makes the page to which the layer's next token goes its own, by a copy if other caches have it:
  // nothing may be appended without. The same errors, or the backend's.
  absl::Status OwnTail(AttentionBackend& backend, int layer);
  // Counts a token for each of the checksums of rows that follow; the layer's pages have room.
  void Append(int layer, std::span<const std::uint32_t> checksums);
  // Lets go what a window hides from the queries from `position` on, and from the one before it:
  // the layer's last step, which began there, can still be repeated or taken back. `position` is at
  // most the length. Nothing in a layer without a window.
  void LetGo(int layer, std::int64_t position) noexcept;
  // The oldest token, behind the sinks' pages, that the layer has not let go; and where those end.
  std::int64_t first_position(int layer) const { return tables_.first_position(layer); }
  std::int64_t sink_end(int layer) const {
    return layout_->sink_pages(layer) * layout_->page_size(layer);
  }
  // True when nothing has been let go without which the layer could go on at this length, which it
  // has or exceeds.
  bool CanGoOnAt(int layer, std::int64_t length) const { return tables_.CanGoOnAt(layer, length); }
  // Forgets the tokens from there on, which were appended to pages of its own. The pages stay.
  void TakeBack(int layer, std::int64_t length);
  // True when the tokens from `position` on, which the layer has and has not let go, were appended
  // with these. None of them is before the compacted length.
  bool Holds(int layer, std::int64_t position, std::span<const std::uint32_t> checksums) const {
    return tables_.Holds(layer, position - tables_.num_dropped(layer), checksums);
  }

  // The checksums of tokens [begin, end) of those that the layer holds.
  std::vector<std::uint32_t> Checksums(int layer, std::int64_t begin, std::int64_t end) const {
    return tables_.ChecksumsOf(layer, begin, end);
  }
  // Says of a layer that holds no token: `num_dropped` were let go when its length was
  // `compacted_length`, before those that are appended. To be called before others see the cache.
  void SetCompacted(int layer, std::int64_t num_dropped, std::int64_t compacted_length);

  // Makes an empty cache of the same device, owner and shape hold the first `length` tokens of each
  // layer, where all layers can go on; of those with windows only what they need to. No page is
  // copied before somebody appends to it.
  void ForkTo(KvCache& copy, std::int64_t length);
  // Forgets the tokens of all layers from there on, where those that are longer can go on, and none
  // was compacted beyond it.
  void Truncate(std::int64_t length);
  // Lets go of all tokens of these layers that are not kept (PageTables::Keep).
  absl::Status Keep(AttentionBackend& backend, std::span<const LayerKeep> keep,
                    PageTables::Positions positions);
  std::size_t KeepBytes(std::span<const LayerKeep> keep) const { return tables_.KeepBytes(keep); }
  // Each of the caches, all of one device, owner and shape, gets what caches[sources[i]] has held
  // before: all of them, or with an exception none.
  static void Reorder(std::span<const std::shared_ptr<KvCache>> caches,
                      std::span<const std::size_t> sources);
  // The newest of those who were let write. Any thread.
  std::uint64_t writer() const { return writer_.load(std::memory_order_acquire); }
  // FAILED_PRECONDITION FENCED for an older one. Any thread.
  absl::Status CheckWriter(std::uint64_t writer) const;
  void set_writer(std::uint64_t writer) { writer_.store(writer, std::memory_order_release); }

  // By which a repeated change is known.
  std::uint64_t last_change() const { return last_change_; }
  void set_last_change(std::uint64_t id) { last_change_ = id; }

  // The bytes that the layer's pages lack for so many tokens, and those of the copy that OwnTail
  // makes.
  std::size_t MissingBytes(int layer, std::int64_t new_length) const {
    return tables_.MissingBytes(layer, new_length - tables_.num_dropped(layer));
  }
  std::size_t CopyBytes(int layer) const { return tables_.CopyBytes(layer); }
  // The part of so many bytes more on devices that the owner may not have.
  std::size_t ExcessBytes(std::size_t bytes) const { return account_->Excess(bytes); }
  bool HasOwnerOf(const KvCache& other) const { return account_->mark() == other.account_->mark(); }

  // Valid until the next Extend, OwnTail or Truncate, or Spill.
  PagedKvView View(int layer) const { return tables_.View(layer); }

  // Moves the pages that no other cache has to the host's memory, from where Restore brings them
  // back with the same bits; until then nothing can be read or appended. RESOURCE_EXHAUSTED when
  // `to`, which must outlive the cache, has no room, or the backend's error; the cache is as it was
  // then.
  absl::Status Spill(AttentionBackend& backend, PagePool& to);
  // RESOURCE_EXHAUSTED KV_EXHAUSTED or QUOTA_EXCEEDED, or the backend's error, leaves the pages on
  // the host.
  absl::Status Restore(AttentionBackend& backend);
  // Any thread.
  bool is_spilled() const { return is_spilled_.load(std::memory_order_acquire); }
  // Bytes of the device that Spill frees, and that Restore takes.
  std::size_t SpillableBytes() const { return tables_.SpillableBytes(); }
  std::size_t SpilledBytes() const { return tables_.SpilledBytes(); }

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

  // The tokens that each layer holds of its first lengths[layer], or, absent, of all.
  std::vector<std::int64_t> HeldLengths(std::optional<std::int64_t> length) const;
  // Lets any thread see what has become of the tables.
  void PublishPages();
  void PublishLength(int layer);
  void PublishLengths();

  const std::shared_ptr<const PageAccount> account_;
  const int device_;
  const std::shared_ptr<const CacheLayout> layout_;
  PageTables tables_;
  std::vector<std::atomic<std::int64_t>> lengths_;
  std::vector<std::atomic<std::int64_t>> num_held_;
  std::atomic<std::int64_t> kv_bytes_{0};
  std::atomic<int> generation_;  // of the pool; kOnHost when the device has none of the pages
  std::atomic<bool> is_spilled_{false};
  std::atomic<std::uint64_t> writer_{0};
  std::uint64_t last_change_ = 0;
  int num_pins_ = 0;
  absl::Time last_used_ = absl::InfinitePast();
};

}  // namespace attention::server
