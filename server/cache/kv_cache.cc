#include "server/cache/kv_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {

absl::StatusOr<KvPageLayout> KvCache::ChooseLayout(const BackendDescription& backend,
                                                   const KvGeometry& geometry,
                                                   std::int64_t preferred_page_size,
                                                   std::size_t chunk_bytes) {
  std::int64_t page_size = preferred_page_size;
  KvPageLayout layout = backend.PageLayout(geometry, page_size);
  while (layout.page_bytes > chunk_bytes && page_size / 2 >= kPageGranularity) {
    page_size = RoundUp(page_size / 2, kPageGranularity);
    layout = backend.PageLayout(geometry, page_size);
  }
  if (layout.page_bytes <= chunk_bytes) return layout;
  return absl::InvalidArgumentError(
      absl::StrCat("geometry takes ", layout.page_bytes, " bytes for ", layout.page_size,
                   " tokens of a layer, expected at most ", chunk_bytes,
                   " (num_kv_heads * (head_dim_qk + head_dim_v) is too large)"));
}

KvCache::KvCache(PagePool& pool, int device, const KvGeometry& geometry, const KvPageLayout& layout,
                 int num_layers, CacheOwner owner)
    : pool_(pool),
      device_(device),
      owner_(std::move(owner)),
      mark_(MarkOf(owner_.tenant)),
      generation_(pool.generation()),
      geometry_(geometry),
      layout_(layout),
      layers_(num_layers) {
  pool_.AddCache(1);
}

KvCache::~KvCache() {
  FreePages();
  GiveBack(charged_bytes_);
  pool_.AddCache(-1);
}

absl::Status KvCache::Charge(std::size_t bytes) {
  if (owner_.ledger != nullptr) {
    ATTENTION_RETURN_IF_ERROR(owner_.ledger->Take(owner_.tenant, static_cast<std::int64_t>(bytes)));
  }
  charged_bytes_ += bytes;
  return absl::OkStatus();
}

void KvCache::GiveBack(std::size_t bytes) {
  if (owner_.ledger != nullptr && bytes > 0) {
    owner_.ledger->Give(owner_.tenant, static_cast<std::int64_t>(bytes));
  }
  charged_bytes_ -= bytes;
}

std::size_t KvCache::ExcessBytes(std::size_t bytes) const {
  if (owner_.ledger == nullptr) return 0;
  return static_cast<std::size_t>(
      owner_.ledger->Excess(owner_.tenant, static_cast<std::int64_t>(bytes)));
}

std::int64_t KvCache::committed_length() const {
  std::int64_t least = length(0);
  for (int layer = 1; layer < num_layers(); ++layer) least = std::min(least, length(layer));
  return least;
}

absl::Status KvCache::Extend(int layer, std::int64_t new_length) {
  std::vector<void*>& pages = layers_[layer].pages;
  const auto num_before = pages.size();
  const auto num_needed =
      static_cast<std::size_t>(CeilDiv<std::int64_t>(new_length, layout_.page_size));
  if (pages.size() >= num_needed) return absl::OkStatus();
  if (pages.capacity() < num_needed) pages.reserve(std::max(num_needed, 2 * pages.capacity()));
  const std::size_t bytes = (num_needed - num_before) * layout_.page_bytes;
  ATTENTION_RETURN_IF_ERROR(Charge(bytes));
  const auto undo = [&] {
    for (std::size_t i = num_before; i < pages.size(); ++i) {
      pool_.Free(pages[i], generation_, mark_);
    }
    pages.resize(num_before);
    GiveBack(bytes);
  };
  try {
    while (pages.size() < num_needed) {
      void* page = pool_.Allocate(layout_.page_bytes, mark_);
      if (page == nullptr) break;
      pages.push_back(page);
    }
  } catch (...) {
    undo();
    throw;
  }
  if (pages.size() < num_needed) {
    undo();
    return ReasonedError(
        absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
        absl::StrCat("no free KV pages: the step needs ", bytes, " bytes, ", pool_.free_bytes(),
                     " of ", pool_.capacity_bytes(), " are free"));
  }
  kv_bytes_.fetch_add(static_cast<std::int64_t>(bytes), std::memory_order_relaxed);
  return absl::OkStatus();
}

void KvCache::Append(int layer, std::span<const std::uint32_t> checksums) {
  std::vector<std::uint32_t>& known = layers_[layer].checksums;
  known.insert(known.end(), checksums.begin(), checksums.end());
  layers_[layer].length.store(static_cast<std::int64_t>(known.size()), std::memory_order_release);
}

void KvCache::TakeBack(int layer, std::int64_t length) {
  layers_[layer].checksums.resize(static_cast<std::size_t>(length));
  layers_[layer].length.store(length, std::memory_order_release);
}

bool KvCache::Holds(int layer, std::int64_t position,
                    std::span<const std::uint32_t> checksums) const {
  return std::equal(checksums.begin(), checksums.end(),
                    layers_[layer].checksums.begin() + position);
}

std::size_t KvCache::MissingBytes(int layer, std::int64_t new_length) const {
  const auto needed = CeilDiv<std::int64_t>(new_length, layout_.page_size);
  const auto held = static_cast<std::int64_t>(layers_[layer].pages.size());
  return needed > held ? static_cast<std::size_t>(needed - held) * layout_.page_bytes : 0;
}

absl::Status KvCache::Spill(AttentionBackend& backend, PagePool& to) {
  std::vector<std::vector<void*>> pages = TakePages(to);
  if (pages.empty()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory of the host to spill ", kv_bytes(), " bytes of KV pages to"));
  }
  absl::Status status = backend.SavePages(PairPages(pages, /*are_pages=*/false));
  if (!status.ok()) {
    FreeAll(pages, to, to.generation());
    return status;
  }
  ReplacePages(std::move(pages), &to);
  GiveBack(charged_bytes_);
  generation_.store(kOnHost, std::memory_order_release);
  return absl::OkStatus();
}

absl::Status KvCache::Restore(AttentionBackend& backend) {
  const int generation = pool_.generation();
  const auto bytes = static_cast<std::size_t>(kv_bytes());
  ATTENTION_RETURN_IF_ERROR(Charge(bytes));
  std::vector<std::vector<void*>> pages = TakePages(pool_);
  if (pages.empty()) {
    GiveBack(bytes);
    return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
                         absl::StrCat("no free KV pages: the session was idle and needs its ",
                                      kv_bytes(), " bytes again, ", pool_.free_bytes(), " of ",
                                      pool_.capacity_bytes(), " are free"));
  }
  absl::Status status = backend.RestorePages(PairPages(pages, /*are_pages=*/true));
  if (!status.ok()) {
    FreeAll(pages, pool_, generation);
    GiveBack(bytes);
    return status;
  }
  ReplacePages(std::move(pages), nullptr);
  generation_.store(generation, std::memory_order_release);
  return absl::OkStatus();
}

std::vector<std::vector<void*>> KvCache::TakePages(PagePool& to) const {
  const int generation = to.generation();
  std::vector<std::vector<void*>> taken(layers_.size());
  // All that may throw comes before the first page.
  for (int layer = 0; layer < num_layers(); ++layer) {
    // A step that failed may have left more pages than tokens.
    const auto needed = CeilDiv<std::int64_t>(length(layer), layout_.page_size);
    taken[layer].reserve(static_cast<std::size_t>(needed));
  }
  for (int layer = 0; layer < num_layers(); ++layer) {
    const auto needed = CeilDiv<std::int64_t>(length(layer), layout_.page_size);
    for (std::int64_t i = 0; i < needed; ++i) {
      void* page = to.Allocate(layout_.page_bytes, mark_);
      if (page == nullptr) {
        FreeAll(taken, to, generation);
        return {};
      }
      taken[layer].push_back(page);
    }
  }
  return taken;
}

void KvCache::FreeAll(const std::vector<std::vector<void*>>& pages, PagePool& pool,
                      int generation) const {
  for (const std::vector<void*>& layer : pages) {
    for (void* page : layer) pool.Free(page, generation, mark_);
  }
}

std::vector<PageCopy> KvCache::PairPages(const std::vector<std::vector<void*>>& others,
                                         bool are_pages) const {
  std::vector<PageCopy> copies;
  for (std::size_t layer = 0; layer < others.size(); ++layer) {
    for (std::size_t i = 0; i < others[layer].size(); ++i) {
      void* mine = layers_[layer].pages[i];
      void* other = others[layer][i];
      copies.push_back({are_pages ? other : mine, are_pages ? mine : other, layout_.page_bytes});
    }
  }
  return copies;
}

void KvCache::FreePages() {
  PagePool& pool = host_pool_ != nullptr ? *host_pool_ : pool_;
  const int generation = host_pool_ != nullptr ? host_pool_->generation()
                                               : generation_.load(std::memory_order_relaxed);
  for (const Layer& layer : layers_) {
    for (void* page : layer.pages) pool.Free(page, generation, mark_);
  }
}

void KvCache::ReplacePages(std::vector<std::vector<void*>> pages, PagePool* host_pool) {
  FreePages();
  std::size_t num_pages = 0;
  for (std::size_t layer = 0; layer < pages.size(); ++layer) {
    layers_[layer].pages = std::move(pages[layer]);
    num_pages += layers_[layer].pages.size();
  }
  host_pool_ = host_pool;
  kv_bytes_.store(static_cast<std::int64_t>(num_pages * layout_.page_bytes),
                  std::memory_order_relaxed);
}

PagedKvView KvCache::View(int layer) const {
  const std::vector<void*>& pages = layers_[layer].pages;
  // A session that has no page yet still needs a table: null would mean contiguous KV.
  static void* const kNoPages[1] = {nullptr};
  return {pages.empty() ? kNoPages : pages.data(), static_cast<std::int64_t>(pages.size()),
          layout_.page_size};
}

}  // namespace attention::server
