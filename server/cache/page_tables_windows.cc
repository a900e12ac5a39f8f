// Layers that keep only what a later query can see.
#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/divide.h"
#include "server/cache/page_sharing.h"
#include "server/cache/page_tables.h"

namespace attention::server {
namespace {

constexpr auto kIndexIsBefore = [](const auto& page, std::int64_t index) {
  return page.index < index;
};

}  // namespace

const WindowPage* WindowPages::Find(std::int64_t index) const {
  const auto found = std::lower_bound(shared.begin(), shared.end(), index, kIndexIsBefore);
  return found != shared.end() && found->index == index ? &*found : nullptr;
}

void WindowPages::Forget(std::int64_t begin, std::int64_t end) noexcept {
  const auto first = std::lower_bound(shared.begin(), shared.end(), begin, kIndexIsBefore);
  shared.erase(first, std::lower_bound(first, shared.end(), end, kIndexIsBefore));
}

std::int64_t PageTables::FirstPageAt(int layer, std::int64_t length) const {
  const std::int64_t begin = length - layout_->shape.layer(layer).window_tokens;
  const std::int64_t page = std::max<std::int64_t>(0, begin) / layout_->page_size(layer);
  return page > layout_->sink_pages(layer) ? page : 0;
}

bool PageTables::CanGoOnAt(int layer, std::int64_t length) const {
  if (!has_window(layer) || first_position(layer) == 0 || length == 0) return true;
  return length - layout_->shape.layer(layer).window_tokens >= first_position(layer);
}

void PageTables::LetGo(int layer, std::int64_t position) noexcept {
  if (!has_window(layer)) return;
  WindowPages& window = windows_[layer];
  Layer& own = layers_[layer];
  const std::int64_t end = FirstPageAt(layer, position);
  if (end <= window.first_page) return;
  const std::int64_t begin = std::max(window.first_page, layout_->sink_pages(layer));
  const std::size_t freed_bytes = FreeOwn(layer, begin, end);
  charged_bytes_ -= freed_bytes;
  account_->GiveBack(freed_bytes);
  window.Forget(begin, end);
  std::fill(own.pages.begin() + begin, own.pages.begin() + end, nullptr);
  bytes_ -= static_cast<std::size_t>(end - begin) * layout_->page_bytes(layer);
  const std::int64_t num_tokens = (end - window.first_page) * layout_->page_size(layer);
  own.checksums.erase(own.checksums.begin(), own.checksums.begin() + num_tokens);
  window.first_page = end;
}

void PageTables::PrepareWindow(int layer, std::int64_t length, Windows windows, Sharing& sharing) {
  ATTENTION_CHECK(CanGoOnAt(layer, length));
  const Layer& from = layers_[layer];
  const WindowPages& window = windows_[layer];
  Layer& to = sharing.copy.layers_[layer];
  WindowPages& copied = sharing.copy.windows_[layer];
  const auto [page_size, page_bytes] = layout_->of(layer);
  if (length == 0) return;
  const std::int64_t num_pages = CeilDiv(length, page_size);
  copied.first_page = window.first_page;
  if (windows == Windows::kTrimmed) {
    copied.first_page = std::max(window.first_page, FirstPageAt(layer, length));
  }
  std::vector<WindowPage>& shared = sharing.windows[layer];
  shared.reserve(from.pages.size());
  copied.shared.reserve(static_cast<std::size_t>(num_pages));
  for (std::int64_t i = 0; i < from.num_pages(); ++i) {
    const bool is_copied =
        i < num_pages && (i < layout_->sink_pages(layer) || i >= copied.first_page);
    if (const WindowPage* known = window.Find(i); known != nullptr) {
      shared.push_back(*known);
    } else if (is_copied && from.pages[i] != nullptr) {
      shared.push_back({i, std::make_shared<SharedPage>(account_, generation_, page_bytes)});
    } else {
      continue;
    }
    if (is_copied) copied.shared.push_back(shared.back());
  }
  const std::int64_t first = window.first_page * page_size;
  to.checksums.assign(from.checksums.begin() + (copied.first_page * page_size - first),
                      from.checksums.begin() + (length - first));
  // The table comes last: none of its pages is the copy's own.
  std::vector<void*> pages(static_cast<std::size_t>(num_pages));
  for (const WindowPage& page : copied.shared) pages[page.index] = from.pages[page.index];
  to.pages = std::move(pages);
  sharing.copy.bytes_ += copied.shared.size() * page_bytes;
}

void PageTables::CommitWindow(int layer, Sharing& sharing) noexcept {
  for (const WindowPage& page : sharing.windows[layer]) {
    if (page.owner->is_owner()) continue;
    page.owner->Own(layers_[layer].pages[page.index]);
    charged_bytes_ -= layout_->page_bytes(layer);
  }
  if (!sharing.windows[layer].empty()) {
    windows_[layer].shared = std::move(sharing.windows[layer]);
  }
}

void PageTables::TruncateWindow(int layer, std::int64_t length) noexcept {
  ATTENTION_CHECK(CanGoOnAt(layer, length));
  const std::int64_t num_pages = CeilDiv(length, layout_->page_size(layer));
  DropPagesFrom(layer, num_pages);
  windows_[layer].Forget(num_pages, std::numeric_limits<std::int64_t>::max());
  if (length == 0) windows_[layer].first_page = 0;
  layers_[layer].checksums.resize(static_cast<std::size_t>(length - first_checksum(layer)));
}

}  // namespace attention::server
