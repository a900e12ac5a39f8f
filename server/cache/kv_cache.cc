#include "server/cache/kv_cache.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {

absl::StatusOr<KvPageLayout> KvCache::ChooseLayout(const BackendDescription& backend,
                                                   const LayerShape& layer,
                                                   std::int64_t preferred_page_size,
                                                   std::size_t chunk_bytes) {
  // Up to two pages more than the window are kept: an eighth of it then.
  constexpr std::int64_t kPagesOfWindow = 16;
  std::int64_t page_size = preferred_page_size;
  KvPageLayout layout = backend.PageLayout(layer.geometry, page_size);
  const auto is_too_large = [&] {
    return layout.page_bytes > chunk_bytes ||
           (layer.has_window() && page_size * kPagesOfWindow > layer.window_tokens);
  };
  while (is_too_large() && page_size / 2 >= kPageGranularity) {
    page_size = RoundUp(page_size / 2, kPageGranularity);
    layout = backend.PageLayout(layer.geometry, page_size);
  }
  if (layout.page_bytes <= chunk_bytes) return layout;
  return absl::InvalidArgumentError(
      absl::StrCat("geometry takes ", layout.page_bytes, " bytes for ", layout.page_size,
                   " tokens of a layer, expected at most ", chunk_bytes,
                   " (num_kv_heads * (head_dim_qk + head_dim_v) is too large)"));
}

KvCache::KvCache(PagePool& pool, int device, std::shared_ptr<const CacheLayout> layout,
                 CacheOwner owner)
    : account_(std::make_shared<const PageAccount>(pool, std::move(owner))),
      device_(device),
      layout_(std::move(layout)),
      tables_(account_, layout_),
      lengths_(static_cast<std::size_t>(layout_->num_layers())),
      num_held_(static_cast<std::size_t>(layout_->num_layers())),
      generation_(tables_.generation()) {
  pool.AddCache(1);
}

KvCache::~KvCache() { account_->pool().AddCache(-1); }

absl::Status KvCache::CheckWriter(std::uint64_t writer) const {
  const std::uint64_t newest = this->writer();
  if (writer >= newest) return absl::OkStatus();
  return ReasonedError(
      absl::StatusCode::kFailedPrecondition, ErrorReason::kFenced,
      absl::StrCat("handle.writer is ", writer, ", expected ", newest,
                   ": another program has attached itself to the session (AttachSession)"));
}

std::int64_t KvCache::committed_length() const {
  std::int64_t least = length(0);
  for (int layer = 1; layer < num_layers(); ++layer) least = std::min(least, length(layer));
  return least;
}

std::vector<std::int64_t> KvCache::HeldLengths(std::optional<std::int64_t> length) const {
  std::vector<std::int64_t> lengths;
  lengths.reserve(lengths_.size());
  for (int layer = 0; layer < num_layers(); ++layer) {
    const std::int64_t all = this->length(layer);
    lengths.push_back(std::min(all, length.value_or(all)) - tables_.num_dropped(layer));
  }
  return lengths;
}

void KvCache::PublishPages() {
  const bool is_on_device = !tables_.is_on_host() || tables_.has_shared_pages();
  kv_bytes_.store(static_cast<std::int64_t>(tables_.bytes()), std::memory_order_relaxed);
  generation_.store(is_on_device ? tables_.generation() : kOnHost, std::memory_order_release);
  is_spilled_.store(tables_.is_on_host(), std::memory_order_release);
}

void KvCache::PublishLength(int layer) {
  const std::int64_t held = tables_.length(layer);
  num_held_[layer].store(held, std::memory_order_release);
  lengths_[layer].store(held + tables_.num_dropped(layer), std::memory_order_release);
}

void KvCache::PublishLengths() {
  for (int layer = 0; layer < num_layers(); ++layer) PublishLength(layer);
  PublishPages();
}

// --- Appending
// ------------------------------------------------------------------------------------

absl::Status KvCache::Extend(int layer, std::int64_t new_length) {
  ATTENTION_RETURN_IF_ERROR(tables_.Extend(layer, new_length - tables_.num_dropped(layer)));
  kv_bytes_.store(static_cast<std::int64_t>(tables_.bytes()), std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status KvCache::OwnTail(AttentionBackend& backend, int layer) {
  return tables_.OwnTail(backend, layer);
}

void KvCache::Append(int layer, std::span<const std::uint32_t> checksums) {
  tables_.Append(layer, checksums);
  PublishLength(layer);
}

void KvCache::LetGo(int layer, std::int64_t position) noexcept {
  tables_.LetGo(layer, position);
  kv_bytes_.store(static_cast<std::int64_t>(tables_.bytes()), std::memory_order_relaxed);
}

void KvCache::TakeBack(int layer, std::int64_t length) {
  tables_.TakeBack(layer, length - tables_.num_dropped(layer));
  PublishLength(layer);
}

// --- Changes of the whole
// -------------------------------------------------------------------------

void KvCache::ForkTo(KvCache& copy, std::int64_t length) {
  copy.tables_ = tables_.Share(HeldLengths(length), PageTables::Windows::kTrimmed);
  copy.PublishLengths();
}

void KvCache::Truncate(std::int64_t length) {
  tables_.Truncate(HeldLengths(length));
  PublishLengths();
}

void KvCache::SetCompacted(int layer, std::int64_t num_dropped, std::int64_t compacted_length) {
  tables_.SetCompacted(layer, num_dropped, compacted_length);
  PublishLength(layer);
}

absl::Status KvCache::Keep(AttentionBackend& backend, std::span<const LayerKeep> keep,
                           PageTables::Positions positions) {
  ATTENTION_RETURN_IF_ERROR(tables_.Keep(backend, keep, positions));
  PublishLengths();
  return absl::OkStatus();
}

void KvCache::Reorder(std::span<const std::shared_ptr<KvCache>> caches,
                      std::span<const std::size_t> sources) {
  std::vector<int> num_uses(caches.size());
  for (const std::size_t source : sources) ++num_uses[source];
  std::vector<std::optional<PageTables>> next(caches.size());
  for (std::size_t i = 0; i < caches.size(); ++i) {
    KvCache& source = *caches[sources[i]];
    if (--num_uses[sources[i]] == 0) continue;  // the last one has the tables themselves
    next[i] = source.tables_.Share(source.HeldLengths(std::nullopt), PageTables::Windows::kWhole);
  }
  for (std::size_t i = 0; i < caches.size(); ++i) {
    if (!next[i].has_value()) next[i] = std::move(caches[sources[i]]->tables_);
  }
  for (std::size_t i = 0; i < caches.size(); ++i) {
    caches[i]->tables_ = *std::move(next[i]);
    caches[i]->PublishLengths();
  }
}

// --- Pages on the host
// ----------------------------------------------------------------------------

absl::Status KvCache::Spill(AttentionBackend& backend, PagePool& to) {
  ATTENTION_RETURN_IF_ERROR(tables_.Spill(backend, to));
  PublishPages();
  return absl::OkStatus();
}

absl::Status KvCache::Restore(AttentionBackend& backend) {
  ATTENTION_RETURN_IF_ERROR(tables_.Restore(backend));
  PublishPages();
  return absl::OkStatus();
}

}  // namespace attention::server
