// Page tables whose own pages go to the host and come back.
#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/cache/page_tables.h"

namespace attention::server {

// A group's page that is only partly used stays where it is in the table: from now on as an own
// page.
bool PageTables::AbsorbLastGroup() {
  if (groups_.empty() || !PageGroup::IsSole(groups_.back())) return false;
  PageGroup& group = *groups_.back();
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (group.layers[i].pages.empty()) continue;
    if (layers_[i].tail != nullptr) return false;
    if (layers_[i].is_tail_grouped && !group.layers[i].Has(layers_[i].num_grouped)) return false;
    group.layers[i].checksums.reserve(group.layers[i].checksums.size() +
                                      layers_[i].checksums.size());
  }
  group.TakeBack();
  PagePool& pool = account_->pool();
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    PageGroup::Layer& grouped = group.layers[i];
    Layer& own = layers_[i];
    const auto [page_size, page_bytes] = layout_->of(static_cast<int>(i));
    if (grouped.pages.empty()) continue;
    if (grouped.first != nullptr) grouped.first->TakeBack();
    const auto num_all = static_cast<std::int64_t>(grouped.pages.size());
    const std::int64_t num_used = std::clamp<std::int64_t>(
        own.num_grouped + (own.is_tail_grouped ? 1 : 0) - grouped.begin, 0, num_all);
    for (std::int64_t page = num_used; page < num_all; ++page) {
      pool.Free(grouped.pages[page], generation_, account_->mark());
    }
    account_->GiveBack(static_cast<std::size_t>(num_all - num_used) * page_bytes);
    charged_bytes_ += static_cast<std::size_t>(num_used) * page_bytes;
    if (num_used == 0) continue;
    grouped.checksums.resize(
        static_cast<std::size_t>((own.num_grouped - grouped.begin) * page_size));
    grouped.checksums.insert(grouped.checksums.end(), own.checksums.begin(), own.checksums.end());
    own.checksums = std::move(grouped.checksums);
    own.num_grouped = grouped.begin;
    own.is_tail_grouped = false;
  }
  groups_.pop_back();
  return true;
}

void PageTables::AbsorbSole() {
  for (int layer = 0; layer < num_layers(); ++layer) {
    const std::shared_ptr<SharedPage>& tail = layers_[layer].tail;
    if (tail != nullptr && tail.use_count() == 1) ReleaseTail(layer);
  }
  while (AbsorbLastGroup()) {
  }
}

std::size_t PageTables::SpillableBytes() const {
  std::size_t bytes = charged_bytes_;
  for (int layer = 0; layer < num_layers(); ++layer) {
    const std::shared_ptr<SharedPage>& tail = layers_[layer].tail;
    if (tail != nullptr && tail.use_count() == 1) bytes += layout_->page_bytes(layer);
  }
  for (auto group = groups_.rbegin(); group != groups_.rend() && PageGroup::IsSole(*group);
       ++group) {
    bytes += (*group)->bytes();
  }
  return bytes;
}

std::size_t PageTables::SpilledBytes() const {
  if (!is_on_host()) return 0;
  std::size_t bytes = 0;
  for (int layer = 0; layer < num_layers(); ++layer) {
    const std::int64_t num_pages = layers_[layer].num_pages() - layers_[layer].first_own();
    bytes += static_cast<std::size_t>(num_pages) * layout_->page_bytes(layer);
  }
  return bytes;
}

absl::Status PageTables::Spill(AttentionBackend& backend, PagePool& to) {
  AbsorbSole();
  const std::optional<OwnPages> pages = TakePages(to);
  if (!pages.has_value()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory of the host to spill ", charged_bytes_, " bytes of KV pages to"));
  }
  absl::Cleanup free = [&] { FreeTaken(*pages, to, to.generation()); };
  ATTENTION_RETURN_IF_ERROR(backend.SavePages(PairPages(*pages, /*are_pages=*/false)));
  std::move(free).Cancel();
  ReplaceOwn(*pages, &to);
  account_->GiveBack(std::exchange(charged_bytes_, 0));
  return absl::OkStatus();
}

absl::Status PageTables::Restore(AttentionBackend& backend) {
  PagePool& pool = account_->pool();
  const int generation = pool.generation();
  const std::size_t bytes = SpilledBytes();
  ATTENTION_RETURN_IF_ERROR(account_->Charge(bytes));
  absl::Cleanup uncharge = [&] { account_->GiveBack(bytes); };
  const std::optional<OwnPages> pages = TakePages(pool);
  if (!pages.has_value()) {
    return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
                         absl::StrCat("no free KV pages: the session was idle and needs its ",
                                      bytes, " bytes again, ", pool.free_bytes(), " of ",
                                      pool.capacity_bytes(), " are free"));
  }
  absl::Cleanup free = [&] { FreeTaken(*pages, pool, generation); };
  ATTENTION_RETURN_IF_ERROR(backend.RestorePages(PairPages(*pages, /*are_pages=*/true)));
  std::move(free).Cancel();
  std::move(uncharge).Cancel();
  ReplaceOwn(*pages, nullptr);
  charged_bytes_ = bytes;
  generation_ = generation;
  return absl::OkStatus();
}

std::optional<PageTables::OwnPages> PageTables::TakePages(PagePool& to) const {
  const int generation = to.generation();
  // A step that failed may have left more pages than tokens.
  const auto num_needed = [&](int layer) {
    return CeilDiv(length(layer), layout_->page_size(layer)) - layers_[layer].first_own();
  };
  OwnPages taken(layers_.size());
  for (int layer = 0; layer < num_layers(); ++layer) {
    taken[layer].reserve(static_cast<std::size_t>(num_needed(layer)));
  }
  absl::Cleanup free = [&] { FreeTaken(taken, to, generation); };
  for (int layer = 0; layer < num_layers(); ++layer) {
    for (std::int64_t i = num_needed(layer); i > 0; --i) {
      void* page = to.Allocate(layout_->page_bytes(layer), account_->mark());
      if (page == nullptr) return std::nullopt;
      taken[layer].push_back(page);
    }
  }
  std::move(free).Cancel();
  return taken;
}

void PageTables::FreeTaken(const OwnPages& pages, PagePool& pool, int generation) const {
  for (const std::vector<void*>& layer : pages) {
    for (void* page : layer) pool.Free(page, generation, account_->mark());
  }
}

std::vector<PageCopy> PageTables::PairPages(const OwnPages& others, bool are_pages) const {
  std::vector<PageCopy> copies;
  for (std::size_t layer = 0; layer < others.size(); ++layer) {
    const std::size_t page_bytes = layout_->page_bytes(static_cast<int>(layer));
    for (std::size_t i = 0; i < others[layer].size(); ++i) {
      void* mine = layers_[layer].pages[layers_[layer].first_own() + i];
      void* other = others[layer][i];
      copies.push_back({are_pages ? other : mine, are_pages ? mine : other, page_bytes});
    }
  }
  return copies;
}

void PageTables::ReplaceOwn(const OwnPages& pages, PagePool* host_pool) noexcept {
  FreeAllOwn();
  bytes_ = 0;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    Layer& layer = layers_[i];
    const auto first = static_cast<std::size_t>(layer.first_own());
    layer.pages.resize(first + pages[i].size());
    std::copy(pages[i].begin(), pages[i].end(), layer.pages.begin() + layer.first_own());
    bytes_ += layer.pages.size() * layout_->page_bytes(static_cast<int>(i));
  }
  host_pool_ = host_pool;
}

}  // namespace attention::server
