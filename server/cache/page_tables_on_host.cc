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

void PageTables::AbsorbSolePages(int layer) noexcept {
  std::erase_if(windows_[layer].shared, [&](const WindowPage& page) {
    if (page.owner.use_count() > 1) return false;
    page.owner->TakeBack();
    charged_bytes_ += layout_->page_bytes(layer);
    return true;
  });
}

void PageTables::AbsorbSole() {
  for (int layer = 0; layer < num_layers(); ++layer) {
    const std::shared_ptr<SharedPage>& tail = layers_[layer].tail;
    if (tail != nullptr && tail.use_count() == 1) ReleaseTail(layer);
    if (has_window(layer)) AbsorbSolePages(layer);
  }
  while (AbsorbLastGroup()) {
  }
}

std::size_t PageTables::SpillableBytes() const {
  std::size_t bytes = charged_bytes_;
  for (int layer = 0; layer < num_layers(); ++layer) {
    const std::shared_ptr<SharedPage>& tail = layers_[layer].tail;
    if (tail != nullptr && tail.use_count() == 1) bytes += layout_->page_bytes(layer);
    if (!has_window(layer)) continue;
    for (const WindowPage& page : windows_[layer].shared) {
      if (page.owner.use_count() == 1) bytes += layout_->page_bytes(layer);
    }
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
    ForEachOwn(layer, 0, layers_[layer].num_pages(),
               [&](std::int64_t) { bytes += layout_->page_bytes(layer); });
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
  OwnPages taken(layers_.size());
  for (int layer = 0; layer < num_layers(); ++layer) {
    // A step that failed may have left more pages than tokens.
    ForEachOwn(layer, 0, NumTokenPages(layer), [&](std::int64_t i) {
      taken[layer].push_back({i, nullptr});
    });
  }
  absl::Cleanup free = [&] { FreeTaken(taken, to, generation); };
  for (int layer = 0; layer < num_layers(); ++layer) {
    for (OwnPage& own : taken[layer]) {
      own.page = to.Allocate(layout_->page_bytes(layer), account_->mark());
      if (own.page == nullptr) return std::nullopt;
    }
  }
  std::move(free).Cancel();
  return taken;
}

void PageTables::FreeTaken(const OwnPages& pages, PagePool& pool, int generation) const {
  for (const std::vector<OwnPage>& layer : pages) {
    for (const OwnPage& own : layer) {
      if (own.page != nullptr) pool.Free(own.page, generation, account_->mark());
    }
  }
}

std::vector<PageCopy> PageTables::PairPages(const OwnPages& others, bool are_pages) const {
  std::vector<PageCopy> copies;
  for (std::size_t layer = 0; layer < others.size(); ++layer) {
    const std::size_t page_bytes = layout_->page_bytes(static_cast<int>(layer));
    for (const OwnPage& other : others[layer]) {
      void* mine = layers_[layer].pages[other.index];
      copies.push_back({are_pages ? other.page : mine, are_pages ? mine : other.page, page_bytes});
    }
  }
  return copies;
}

void PageTables::ReplaceOwn(const OwnPages& pages, PagePool* host_pool) noexcept {
  FreeAllOwn();
  bytes_ = 0;
  for (int layer = 0; layer < num_layers(); ++layer) {
    layers_[layer].pages.resize(static_cast<std::size_t>(NumTokenPages(layer)));
    for (const OwnPage& own : pages[layer]) layers_[layer].pages[own.index] = own.page;
    bytes_ += BytesFrom(layer, 0);
  }
  host_pool_ = host_pool;
}

}  // namespace attention::server
