#include "server/cache/page_tables.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {

PageTables::PageTables(std::shared_ptr<const PageAccount> account,
                       std::shared_ptr<const CacheLayout> layout)
    : account_(std::move(account)),
      layout_(std::move(layout)),
      generation_(account_->pool().generation()),
      layers_(static_cast<std::size_t>(layout_->num_layers())) {}

PageTables& PageTables::operator=(PageTables&& other) noexcept {
  PageTables old(std::move(*this));
  account_ = std::move(other.account_);
  layout_ = std::move(other.layout_);
  generation_ = other.generation_;
  host_pool_ = other.host_pool_;
  layers_ = std::move(other.layers_);
  groups_ = std::move(other.groups_);
  bytes_ = other.bytes_;
  charged_bytes_ = std::exchange(other.charged_bytes_, 0);
  return *this;
}

PageTables::~PageTables() {
  if (layers_.empty()) return;  // moved from
  FreeAllOwn();
  account_->GiveBack(charged_bytes_);
}

bool PageTables::has_shared_pages() const {
  return !groups_.empty() ||
         std::any_of(layers_.begin(), layers_.end(), [](const Layer& l) { return l.has_tail(); });
}

PagedKvView PageTables::View(int layer) const {
  const std::vector<void*>& pages = layers_[layer].pages;
  // A session that has no page yet still needs a table: null would mean contiguous KV.
  static void* const kNoPages[1] = {nullptr};
  return {pages.empty() ? kNoPages : pages.data(), static_cast<std::int64_t>(pages.size()),
          layout_->page_size(layer)};
}

void PageTables::FreeOwn(const Layer& layer, std::int64_t begin) const noexcept {
  PagePool& pool = is_on_host() ? *host_pool_ : account_->pool();
  const int generation = is_on_host() ? host_pool_->generation() : generation_;
  for (std::int64_t i = begin; i < layer.num_pages(); ++i) {
    pool.Free(layer.pages[i], generation, account_->mark());
  }
}

void PageTables::FreeAllOwn() const noexcept {
  for (const Layer& layer : layers_) FreeOwn(layer, layer.first_own());
}

// --- Checksums
// ------------------------------------------------------------------------------------

const PageGroup::Layer* PageTables::GroupOf(int layer, std::int64_t page) const {
  for (auto group = groups_.rbegin(); group != groups_.rend(); ++group) {
    if ((*group)->layers[layer].Has(page)) return &(*group)->layers[layer];
  }
  return nullptr;
}

bool PageTables::Holds(int layer, std::int64_t position,
                       std::span<const std::uint32_t> checksums) const {
  const Layer& own = layers_[layer];
  const std::int64_t page_size = layout_->page_size(layer);
  while (!checksums.empty()) {
    const std::int64_t page = position / page_size;
    const std::uint32_t* known = nullptr;
    auto count = static_cast<std::int64_t>(checksums.size());
    if (page >= own.num_grouped) {
      known = own.checksums.data() + (position - own.num_grouped * page_size);
    } else {
      const PageGroup::Layer& group = *GroupOf(layer, page);
      known = group.checksums.data() + (position - group.begin * page_size);
      count = std::min(count, (page + 1) * page_size - position);
    }
    if (!std::equal(checksums.begin(), checksums.begin() + count, known)) return false;
    checksums = checksums.subspan(static_cast<std::size_t>(count));
    position += count;
  }
  return true;
}

std::vector<std::uint32_t> PageTables::Checksums(int layer, std::int64_t begin,
                                                 std::int64_t end) const {
  if (begin == end) return {};
  const Layer& own = layers_[layer];
  const std::int64_t page_size = layout_->page_size(layer), page = begin / page_size;
  const auto part = [&](const std::vector<std::uint32_t>& known, std::int64_t first_page) {
    const auto from = known.begin() + (begin - first_page * page_size);
    return std::vector<std::uint32_t>(from, from + (end - begin));
  };
  if (page >= own.num_grouped) return part(own.checksums, own.num_grouped);
  const PageGroup::Layer& group = *GroupOf(layer, page);
  return part(group.checksums, group.begin);
}

// --- Appending
// ------------------------------------------------------------------------------------

std::size_t PageTables::MissingBytes(int layer, std::int64_t new_length) const {
  const std::int64_t needed = CeilDiv(new_length, layout_->page_size(layer));
  const std::int64_t held = layers_[layer].num_pages();
  return needed > held ? static_cast<std::size_t>(needed - held) * layout_->page_bytes(layer) : 0;
}

bool PageTables::AppendsToTail(int layer) const {
  const Layer& own = layers_[layer];
  return own.has_tail() && length(layer) / layout_->page_size(layer) == own.num_grouped;
}

std::size_t PageTables::CopyBytes(int layer) const {
  if (!AppendsToTail(layer)) return 0;
  const Layer& own = layers_[layer];
  return own.is_tail_grouped || own.tail.use_count() > 1 ? layout_->page_bytes(layer) : 0;
}

void PageTables::ReleaseTail(int layer) {
  layers_[layer].tail->TakeBack();
  layers_[layer].tail.reset();
  charged_bytes_ += layout_->page_bytes(layer);
}

absl::Status PageTables::OwnTail(AttentionBackend& backend, int layer) {
  if (!AppendsToTail(layer)) return absl::OkStatus();
  Layer& own = layers_[layer];
  if (own.tail != nullptr && own.tail.use_count() == 1) {
    ReleaseTail(layer);
    return absl::OkStatus();
  }
  PagePool& pool = account_->pool();
  const std::size_t page_bytes = layout_->page_bytes(layer);
  ATTENTION_RETURN_IF_ERROR(account_->Charge(page_bytes));
  absl::Cleanup uncharge = [&] { account_->GiveBack(page_bytes); };
  void* page = pool.Allocate(page_bytes, account_->mark());
  if (page == nullptr) {
    return ReasonedError(
        absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
        absl::StrCat("no free KV pages: the step needs ", page_bytes,
                     " bytes for its own copy of a page that other sessions have, ",
                     pool.free_bytes(), " of ", pool.capacity_bytes(), " are free"));
  }
  absl::Cleanup free = [&] { pool.Free(page, generation_, account_->mark()); };
  const DevicePageCopy copy{own.pages[own.num_grouped], page, page_bytes};
  ATTENTION_RETURN_IF_ERROR(backend.CopyPages({&copy, 1}));
  std::move(free).Cancel();
  std::move(uncharge).Cancel();
  charged_bytes_ += page_bytes;
  own.pages[own.num_grouped] = page;
  own.tail.reset();
  own.is_tail_grouped = false;
  DropUnusedGroups();
  return absl::OkStatus();
}

absl::Status PageTables::Extend(int layer, std::int64_t new_length) {
  std::vector<void*>& pages = layers_[layer].pages;
  const auto num_before = pages.size();
  const std::size_t page_bytes = layout_->page_bytes(layer);
  const auto num_needed = static_cast<std::size_t>(CeilDiv(new_length, layout_->page_size(layer)));
  if (pages.size() >= num_needed) return absl::OkStatus();
  if (pages.capacity() < num_needed) pages.reserve(std::max(num_needed, 2 * pages.capacity()));
  const std::size_t bytes = (num_needed - num_before) * page_bytes;
  ATTENTION_RETURN_IF_ERROR(account_->Charge(bytes));
  PagePool& pool = account_->pool();
  absl::Cleanup undo = [&] {
    for (std::size_t i = num_before; i < pages.size(); ++i) {
      pool.Free(pages[i], generation_, account_->mark());
    }
    pages.resize(num_before);
    account_->GiveBack(bytes);
  };
  while (pages.size() < num_needed) {
    void* page = pool.Allocate(page_bytes, account_->mark());
    if (page == nullptr) {
      return ReasonedError(
          absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
          absl::StrCat("no free KV pages: the step needs ", bytes, " bytes, ", pool.free_bytes(),
                       " of ", pool.capacity_bytes(), " are free"));
    }
    pages.push_back(page);
  }
  std::move(undo).Cancel();
  charged_bytes_ += bytes;
  bytes_ += bytes;
  return absl::OkStatus();
}

void PageTables::Append(int layer, std::span<const std::uint32_t> checksums) {
  std::vector<std::uint32_t>& known = layers_[layer].checksums;
  known.insert(known.end(), checksums.begin(), checksums.end());
}

void PageTables::TakeBack(int layer, std::int64_t length) {
  Layer& own = layers_[layer];
  own.checksums.resize(
      static_cast<std::size_t>(length - own.num_grouped * layout_->page_size(layer)));
}

// --- Sharing
// --------------------------------------------------------------------------------------

struct PageTables::Sharing {
  PageTables copy;
  std::shared_ptr<PageGroup> group;
  std::vector<std::vector<std::uint32_t>> rests;   // checksums that stay behind the group's
  std::vector<std::shared_ptr<SharedPage>> pages;  // that become shared and get their page
};

void PageTables::PrepareLayer(int layer, std::int64_t length, Sharing& sharing) {
  const Layer& from = layers_[layer];
  Layer& to = sharing.copy.layers_[layer];
  const auto [page_size, page_bytes] = layout_->of(layer);
  const std::int64_t full = length / page_size;
  const std::int64_t num_pages = CeilDiv(length, page_size);
  // None of the pages is the copy's own, also when what follows throws.
  to.num_grouped = full;
  to.is_tail_grouped = num_pages > full;
  to.pages.assign(from.pages.begin(), from.pages.begin() + num_pages);
  to.checksums = Checksums(layer, full * page_size, length);
  sharing.copy.bytes_ += static_cast<std::size_t>(num_pages) * page_bytes;
  PageGroup::Layer& group = sharing.group->layers[layer];
  group.begin = from.num_grouped;
  if (full > from.num_grouped) {
    ATTENTION_CHECK(!from.is_tail_grouped);
    group.pages.assign(from.pages.begin() + from.num_grouped, from.pages.begin() + full);
    group.first = from.tail;
    const std::int64_t num_tokens = (full - from.num_grouped) * page_size;
    sharing.rests[layer].assign(from.checksums.begin() + num_tokens, from.checksums.end());
  }
  const bool stays_grouped =
      full < from.num_grouped || (full == from.num_grouped && from.is_tail_grouped);
  if (num_pages == full || stays_grouped) return;
  if (full == from.num_grouped && from.tail != nullptr) {
    to.tail = from.tail;
    to.is_tail_grouped = false;
  } else {
    sharing.pages[layer] = std::make_shared<SharedPage>(account_, generation_, page_bytes);
  }
}

void PageTables::CommitLayer(int layer, std::int64_t length, Sharing& sharing) noexcept {
  Layer& from = layers_[layer];
  const auto [page_size, page_bytes] = layout_->of(layer);
  const std::int64_t full = length / page_size;
  if (full > from.num_grouped) {
    PageGroup::Layer& group = sharing.group->layers[layer];
    group.checksums = std::exchange(from.checksums, std::move(sharing.rests[layer]));
    group.checksums.resize(group.pages.size() * static_cast<std::size_t>(page_size));
    from.num_grouped = full;
    from.tail.reset();  // the group has it
  }
  if (sharing.pages[layer] == nullptr) return;
  sharing.pages[layer]->Own(from.pages[full]);
  charged_bytes_ -= page_bytes;
  Layer& to = sharing.copy.layers_[layer];
  to.tail = sharing.pages[layer];
  to.is_tail_grouped = false;
  from.tail = std::move(sharing.pages[layer]);
}

PageTables PageTables::Share(std::span<const std::int64_t> lengths) {
  ATTENTION_CHECK(!is_on_host());
  const std::size_t count = layers_.size();
  Sharing sharing{PageTables(account_, layout_),
                  std::make_shared<PageGroup>(account_, layout_, generation_),
                  std::vector<std::vector<std::uint32_t>>(count),
                  std::vector<std::shared_ptr<SharedPage>>(count)};
  sharing.copy.generation_ = generation_;
  for (int layer = 0; layer < num_layers(); ++layer) PrepareLayer(layer, lengths[layer], sharing);
  groups_.reserve(groups_.size() + 1);
  sharing.copy.groups_.reserve(groups_.size() + 1);

  for (int layer = 0; layer < num_layers(); ++layer) CommitLayer(layer, lengths[layer], sharing);
  const bool has_pages =
      std::any_of(sharing.group->layers.begin(), sharing.group->layers.end(),
                  [](const PageGroup::Layer& layer) { return !layer.pages.empty(); });
  if (has_pages) {
    charged_bytes_ -= sharing.group->bytes();
    sharing.group->Own();
    groups_.push_back(std::move(sharing.group));
  }
  sharing.copy.groups_.assign(groups_.begin(), groups_.end());
  sharing.copy.DropUnusedGroups();
  return std::move(sharing.copy);
}

void PageTables::DropUnusedGroups() noexcept {
  const auto is_used = [&](const PageGroup& group) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const std::int64_t end = layers_[i].num_grouped + (layers_[i].is_tail_grouped ? 1 : 0);
      if (!group.layers[i].pages.empty() && group.layers[i].begin < end) return true;
    }
    return false;
  };
  while (!groups_.empty() && !is_used(*groups_.back())) groups_.pop_back();
}

// --- Truncation
// -----------------------------------------------------------------------------------

void PageTables::Truncate(std::int64_t length) {
  std::vector<std::vector<std::uint32_t>> tail_checksums(layers_.size());
  for (int layer = 0; layer < num_layers(); ++layer) {
    const std::int64_t page_size = layout_->page_size(layer), full = length / page_size;
    if (this->length(layer) <= length || full >= layers_[layer].num_grouped) continue;
    tail_checksums[layer] = Checksums(layer, full * page_size, length);
  }
  for (int layer = 0; layer < num_layers(); ++layer) {
    if (this->length(layer) <= length) continue;
    TruncateLayer(layer, length, std::move(tail_checksums[layer]));
  }
  DropUnusedGroups();
}

void PageTables::TruncateLayer(int index, std::int64_t length,
                               std::vector<std::uint32_t> tail_checksums) noexcept {
  Layer& layer = layers_[index];
  const auto [page_size, page_bytes] = layout_->of(index);
  const std::int64_t full = length / page_size;
  const std::int64_t keep = CeilDiv(length, page_size);
  const std::int64_t first_freed = std::max(keep, layer.first_own());
  FreeOwn(layer, first_freed);
  const std::int64_t num_freed = std::max<std::int64_t>(0, layer.num_pages() - first_freed);
  const std::size_t freed_bytes = static_cast<std::size_t>(num_freed) * page_bytes;
  charged_bytes_ -= freed_bytes;
  account_->GiveBack(freed_bytes);
  bytes_ -=
      static_cast<std::size_t>(layer.num_pages() - std::min(keep, layer.num_pages())) * page_bytes;
  if (layer.num_pages() > keep) layer.pages.resize(static_cast<std::size_t>(keep));
  if (keep <= layer.num_grouped) {
    layer.tail.reset();
    layer.is_tail_grouped = false;
  }
  if (full < layer.num_grouped) {
    layer.num_grouped = full;
    layer.is_tail_grouped = keep > full;
    layer.checksums = std::move(tail_checksums);
  } else {
    layer.checksums.resize(static_cast<std::size_t>(length - layer.num_grouped * page_size));
  }
}

}  // namespace attention::server
