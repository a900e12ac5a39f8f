// The page tables of a cache: which pages hold its layers' tokens, who owns them, and the checksums
// of the tokens' rows.
//
// Copies share pages. A layer's table begins with full pages of groups, which other caches may read
// too (page_group.h); then comes at most one page that others may read and that is not full of this
// cache's tokens; the rest is the cache's own. Tables stay flat, because kernels read them. Making
// a copy moves pages of its own into a group and copies tables, and no page. The page that is not
// full is copied by whoever appends to it first, the cache that was copied included, unless nobody
// else has it any more.
//
// A layer with a window (cache_shape.h) keeps the pages of its sinks, and those that a later query
// can see: what is before them is let go as it goes on, and its entries in the table are null. It
// has few pages, which are therefore shared one by one: no group has them, so each goes as soon as
// nobody needs it.
//
// Pages of its own may be on the host; shared ones are always on the device.
//
// Thread-safety: thread-compatible; destruction may happen on any thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/api/attention_backend.h"
#include "kernels/api/paged_kv_view.h"
#include "kernels/base/divide.h"
#include "server/cache/cache_layout.h"
#include "server/cache/page_account.h"
#include "server/cache/page_group.h"

namespace attention::server {

// One page of a layer with a window, which others may have.
struct WindowPage {
  std::int64_t index = 0;  // in the table
  std::shared_ptr<SharedPage> owner;
};

// The part of a layer with a window beside its table; num_grouped is 0 there, and it has no tail.
struct WindowPages {
  std::int64_t first_page = 0;     // of those that are there behind the sinks'; 0: all are
  std::vector<WindowPage> shared;  // by ascending index; the others are the cache's own

  const WindowPage* Find(std::int64_t index) const;
  // Those with an index in [begin, end).
  void Forget(std::int64_t begin, std::int64_t end) noexcept;
};

// Tokens of a layer that stay: the first `num_prefix`, and others behind them, ascending, one list
// for all KV heads or one for each, all of one size.
struct LayerKeep {
  int layer = 0;
  std::int64_t num_prefix = 0;
  std::vector<std::vector<std::int64_t>> tokens;

  std::int64_t num_kept() const { return num_prefix + static_cast<std::int64_t>(tokens[0].size()); }
};

class PageTables {
 public:
  PageTables(std::shared_ptr<const PageAccount> account, std::shared_ptr<const CacheLayout> layout);
  PageTables(PageTables&& other) noexcept = default;
  PageTables& operator=(PageTables&& other) noexcept;
  ~PageTables();

  const std::shared_ptr<const PageAccount>& account() const { return account_; }
  const std::shared_ptr<const CacheLayout>& layout() const { return layout_; }
  // The device's pool had this one when the pages came from there.
  int generation() const { return generation_; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  // Tokens that the layer holds. All positions below are among these.
  std::int64_t length(int layer) const {
    return first_checksum(layer) + static_cast<std::int64_t>(layers_[layer].checksums.size());
  }
  // The oldest token, behind the sinks' pages, that the layer has not let go.
  std::int64_t first_position(int layer) const {
    return windows_.empty() ? 0 : windows_[layer].first_page * layout_->page_size(layer);
  }
  // Tokens that were let go before those, and the length with them when that was last done.
  std::int64_t num_dropped(int layer) const { return layers_[layer].num_dropped; }
  std::int64_t compacted_length(int layer) const { return layers_[layer].compacted_length; }
  // The bytes of all pages in the tables, wherever they are and whoever owns them.
  std::size_t bytes() const { return bytes_; }
  bool is_on_host() const { return host_pool_ != nullptr; }
  bool has_shared_pages() const;
  // Valid until the layer's pages change.
  PagedKvView View(int layer) const;
  // True when the tokens from `position` on, which the layer has and has not let go, were appended
  // with these.
  bool Holds(int layer, std::int64_t position, std::span<const std::uint32_t> checksums) const;

  // --- Appending

  // The bytes that the layer's pages lack for so many tokens, and those of the copy without which
  // nothing can be appended.
  std::size_t MissingBytes(int layer, std::int64_t new_length) const;
  std::size_t CopyBytes(int layer) const;
  // Makes the page to which the layer's next token goes the cache's own, by a copy if others have
  // it. RESOURCE_EXHAUSTED KV_EXHAUSTED or QUOTA_EXCEEDED, or the backend's error, changes nothing;
  // the same holds for the next one.
  absl::Status OwnTail(AttentionBackend& backend, int layer);
  // Takes pages for tokens up to `new_length`.
  absl::Status Extend(int layer, std::int64_t new_length);
  // Counts a token for each of the checksums.
  void Append(int layer, std::span<const std::uint32_t> checksums);
  // Forgets tokens of pages of its own. The pages stay.
  void TakeBack(int layer, std::int64_t length);
  // Lets go what no query from `position` on, or just before it, can see.
  void LetGo(int layer, std::int64_t position) noexcept;

  // --- Changes of the whole. What they throw changes nothing that could be read.

  // True when nothing has been let go without which the layer could go on at this length.
  bool CanGoOnAt(int layer, std::int64_t length) const;
  enum class Windows { kWhole, kTrimmed };
  // Tables of the first lengths[layer] tokens of each layer, which must be able to go on there.
  // Windows are as they are here, or without what is not needed to go on.
  PageTables Share(std::span<const std::int64_t> lengths, Windows windows);
  // Forgets the tokens of each layer from lengths[layer] on, where it must be able to go on, and
  // frees pages of its own that hold no others.
  void Truncate(std::span<const std::int64_t> lengths);

  // --- Compaction (page_tables_compaction.cc)

  enum class Positions { kStay, kFollow };
  // Lets go of all other tokens of these layers, each named once, and moves those that stay
  // together. Where positions stay, the layer remembers how many have gone. RESOURCE_EXHAUSTED
  // KV_EXHAUSTED or QUOTA_EXCEEDED, when pages that others read too cannot be copied, changes
  // nothing.
  absl::Status Keep(AttentionBackend& backend, std::span<const LayerKeep> keep,
                    Positions positions);
  // The bytes of those copies.
  std::size_t KeepBytes(std::span<const LayerKeep> keep) const;
  // As KvCache has them.
  void SetCompacted(int layer, std::int64_t num_dropped, std::int64_t compacted_length) {
    layers_[layer].num_dropped = num_dropped;
    layers_[layer].compacted_length = compacted_length;
  }
  // The checksums of tokens [begin, end), which the layer holds.
  std::vector<std::uint32_t> ChecksumsOf(int layer, std::int64_t begin, std::int64_t end) const;

  // --- Pages on the host

  // Bytes that Spill would free on the device.
  std::size_t SpillableBytes() const;
  // As KvCache has them. Shared pages stay on the device.
  absl::Status Spill(AttentionBackend& backend, PagePool& to);
  absl::Status Restore(AttentionBackend& backend);
  // The bytes that Restore needs.
  std::size_t SpilledBytes() const;

 private:
  struct Layer {
    std::vector<void*> pages;
    std::int64_t num_grouped = 0;          // full ones, at the front, that groups own
    std::shared_ptr<SharedPage> tail;      // owns the next one, if others may have it
    bool is_tail_grouped = false;          // a group owns the next one
    std::vector<std::uint32_t> checksums;  // of the tokens from first_checksum on
    std::int64_t num_dropped = 0;
    std::int64_t compacted_length = 0;

    bool has_tail() const { return tail != nullptr || is_tail_grouped; }
    std::int64_t first_own() const { return num_grouped + (has_tail() ? 1 : 0); }
    std::int64_t num_pages() const { return static_cast<std::int64_t>(pages.size()); }
  };
  struct OwnPage {
    std::int64_t index = 0;  // in the table
    void* page = nullptr;
  };
  using OwnPages = std::vector<std::vector<OwnPage>>;  // of each layer

  bool has_window(int layer) const { return layout_->shape.layer(layer).has_window(); }
  std::int64_t first_checksum(int layer) const {
    return layers_[layer].num_grouped * layout_->page_size(layer) + first_position(layer);
  }
  bool IsOwn(int layer, std::int64_t page) const;
  // Calls visit(index) for the pages from `begin` on, and before `end`, that are its own.
  template <typename Visit>
  void ForEachOwn(int layer, std::int64_t begin, std::int64_t end, Visit visit) const {
    const std::int64_t first = std::max(begin, layers_[layer].first_own());
    for (std::int64_t i = first; i < std::min(end, layers_[layer].num_pages()); ++i) {
      if (IsOwn(layer, i)) visit(i);
    }
  }
  std::int64_t NumTokenPages(int layer) const {
    return CeilDiv(length(layer), layout_->page_size(layer));
  }
  std::size_t BytesFrom(int layer, std::int64_t begin) const;  // of pages from `begin` on

  // The checksums of tokens [begin, end), which lie in one page.
  std::vector<std::uint32_t> Checksums(int layer, std::int64_t begin, std::int64_t end) const;
  const PageGroup::Layer* GroupOf(int layer, std::int64_t page) const;
  bool AppendsToTail(int layer) const;
  // The owner of the page to which the next token goes; null: a group. AppendsToTail is true.
  const std::shared_ptr<SharedPage>& OwnerOfTail(int layer) const;
  void ForgetTail(int layer) noexcept;
  // Makes it the cache's own, the only one that has it.
  void ReleaseTail(int layer) noexcept;

  // The parts of Share: all that may throw, and then the rest.
  struct Sharing;
  void PrepareLayer(int layer, std::int64_t length, Sharing& sharing);
  void CommitLayer(int layer, std::int64_t length, Sharing& sharing) noexcept;
  void PrepareWindow(int layer, std::int64_t length, Windows windows, Sharing& sharing);
  void CommitWindow(int layer, Sharing& sharing) noexcept;
  // WindowPages::first_page of a layer that goes on at this length.
  std::int64_t FirstPageAt(int layer, std::int64_t length) const;

  // Those of the last page of so many tokens, if they lie in a group now and will not after.
  std::vector<std::uint32_t> TailChecksums(int layer, std::int64_t new_length) const;
  void TruncateLayer(int index, std::int64_t length,
                     std::vector<std::uint32_t> tail_checksums) noexcept;
  void TruncateWindow(int layer, std::int64_t length) noexcept;
  void DropPagesFrom(int layer, std::int64_t page) noexcept;
  void DropUnusedGroups() noexcept;

  // The first token that moves, or their number.
  static std::int64_t FirstMoved(const LayerKeep& keep);
  // The pages, by index, that others have too and that get other tokens.
  std::vector<std::int64_t> CopiedPages(const LayerKeep& keep) const;
  // The parts of Keep, as those of Share.
  struct Compaction;
  absl::Status PrepareKeep(const LayerKeep& keep, Positions positions,
                           Compaction& compaction) const;
  void AddMoves(const Compaction& compaction, std::vector<std::vector<std::int64_t>>& lists,
                std::vector<MoveTokensTask>& moves) const;
  void CommitKeep(Compaction& compaction) noexcept;
  // The checksums of what stays, from the kept token `begin` on.
  std::vector<std::uint32_t> KeptChecksums(const LayerKeep& keep, std::int64_t begin,
                                           Positions positions) const;

  // Makes shared pages that nobody else has any more the cache's own.
  void AbsorbSole();
  bool AbsorbLastGroup();
  void AbsorbSolePages(int layer) noexcept;

  // Takes a page from `to` for each page of its own that holds tokens. Nothing is taken when there
  // are not so many.
  std::optional<OwnPages> TakePages(PagePool& to) const;
  void FreeTaken(const OwnPages& pages, PagePool& pool, int generation) const;
  std::vector<PageCopy> PairPages(const OwnPages& others, bool are_pages) const;
  // Gives pages of its own, from `begin` on and before `end`, to the pool: how many bytes.
  std::size_t FreeOwn(int layer, std::int64_t begin, std::int64_t end) const noexcept;
  void FreeAllOwn() const noexcept;
  // Has these in place of its own, which it frees.
  void ReplaceOwn(const OwnPages& pages, PagePool* host_pool) noexcept;

  std::shared_ptr<const PageAccount> account_;
  std::shared_ptr<const CacheLayout> layout_;
  int generation_ = 0;
  PagePool* host_pool_ = nullptr;  // whose its own pages are, when they are on the host
  std::vector<Layer> layers_;
  std::vector<WindowPages> windows_;                // one for each layer, if any has a window
  std::vector<std::shared_ptr<PageGroup>> groups_;  // of a page in several, the last one counts
  std::size_t bytes_ = 0;
  std::size_t charged_bytes_ = 0;  // of its own pages on the device
};

}  // namespace attention::server
