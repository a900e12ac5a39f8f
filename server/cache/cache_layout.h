// The layers of a cache and the layout of their pages, which caches of one shape share.
//
// Thread-safety: immutable.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/api/paged_kv_view.h"
#include "kernels/base/divide.h"
#include "server/domain/cache_shape.h"

namespace attention::server {

struct CacheLayout {
  CacheShape shape;
  std::vector<KvPageLayout> pages;  // of each of shape.said()

  int num_layers() const { return shape.num_layers(); }
  const KvPageLayout& of(int layer) const { return pages[shape.is_uniform() ? 0 : layer]; }
  std::int64_t page_size(int layer) const { return of(layer).page_size; }
  std::size_t page_bytes(int layer) const { return of(layer).page_bytes; }
  // The pages at the front of a layer with a window that are kept for its sinks.
  std::int64_t sink_pages(int layer) const {
    return CeilDiv(shape.layer(layer).sink_tokens, page_size(layer));
  }
  // The most pages that a layer keeps which grows token by token.
  std::int64_t most_kept_pages(int layer) const {
    const LayerShape& kept = shape.layer(layer);
    if (!kept.has_window()) return std::numeric_limits<std::int64_t>::max();
    return sink_pages(layer) + CeilDiv(kept.window_tokens, page_size(layer)) + 2;
  }
  // True when the other one is the same and was said in the same way.
  bool IsSaidAs(const CacheLayout& other) const {
    const auto same = [](const KvPageLayout& a, const KvPageLayout& b) {
      return a.page_size == b.page_size && a.page_bytes == b.page_bytes;
    };
    return shape.is_uniform() == other.shape.is_uniform() && shape == other.shape &&
           std::equal(pages.begin(), pages.end(), other.pages.begin(), other.pages.end(), same);
  }
};

}  // namespace attention::server
