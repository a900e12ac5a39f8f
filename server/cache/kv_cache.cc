#include "server/cache/kv_cache.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"

namespace attention::server {

absl::StatusOr<KvPageLayout> KvCache::ChooseLayout(const AttentionBackend& backend,
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
                 int num_layers)
    : pool_(pool),
      device_(device),
      generation_(pool.generation()),
      geometry_(geometry),
      layout_(layout),
      layers_(num_layers) {
  pool_.AddCache(1);
}

KvCache::~KvCache() {
  for (const Layer& layer : layers_) {
    for (void* page : layer.pages) pool_.Free(page, generation_);
  }
  pool_.AddCache(-1);
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
  while (pages.size() < num_needed) {
    void* page = pool_.Allocate(layout_.page_bytes);
    if (page == nullptr) {
      for (std::size_t i = num_before; i < pages.size(); ++i) pool_.Free(pages[i], generation_);
      pages.resize(num_before);
      return ReasonedError(
          absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
          absl::StrCat("no free KV pages: the step needs ",
                       (num_needed - num_before) * layout_.page_bytes, " bytes, ",
                       pool_.free_bytes(), " of ", pool_.capacity_bytes(), " are free"));
    }
    pages.push_back(page);
  }
  const auto added = static_cast<std::int64_t>((pages.size() - num_before) * layout_.page_bytes);
  kv_bytes_.fetch_add(added, std::memory_order_relaxed);
  return absl::OkStatus();
}

PagedKvView KvCache::View(int layer) const {
  const std::vector<void*>& pages = layers_[layer].pages;
  // A session that has no page yet still needs a table: null would mean contiguous KV.
  static void* const kNoPages[1] = {nullptr};
  return {pages.empty() ? kNoPages : pages.data(), static_cast<std::int64_t>(pages.size()),
          layout_.page_size};
}

}  // namespace attention::server
