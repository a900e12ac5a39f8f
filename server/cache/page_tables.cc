#include "server/cache/page_tables.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/cache/page_sharing.h"

namespace attention::server {

PageTables::PageTables(std::shared_ptr<const PageAccount> account,
                       std::shared_ptr<const CacheLayout> layout)
    : account_(std::move(account)),
      layout_(std::move(layout)),
      generation_(account_->pool().generation()),
      layers_(static_cast<std::size_t>(layout_->num_layers())),
      windows_(layout_->shape.has_windows() ? layers_.size() : 0) {}

PageTables& PageTables::operator=(PageTables&& other) noexcept {
  PageTables old(std::move(*this));
  account_ = std::move(other.account_);
  layout_ = std::move(other.layout_);
  generation_ = other.generation_;
  host_pool_ = other.host_pool_;
  layers_ = std::move(other.layers_);
  windows_ = std::move(other.windows_);
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
         std::any_of(layers_.begin(), layers_.end(), [](const Layer& l) { return l.has_tail(); }) ||
         std::any_of(windows_.begin(), windows_.end(),
                     [](const WindowPages& window) { return !window.shared.empty(); });
}

PagedKvView PageTables::View(int layer) const {
  const std::vector<void*>& pages = layers_[layer].pages;
  // A session that has no page yet still needs a table: null would mean contiguous KV.
  static void* const kNoPages[1] = {nullptr};
  return {pages.empty() ? kNoPages : pages.data(), static_cast<std::int64_t>(pages.size()),
          layout_->page_size(layer)};
}

bool PageTables::IsOwn(int layer, std::int64_t page) const {
  if (page < layers_[layer].first_own()) return false;
  return windows_.empty() ||
         (layers_[layer].pages[page] != nullptr && windows_[layer].Find(page) == nullptr);
}

std::size_t PageTables::FreeOwn(int layer, std::int64_t begin, std::int64_t end) const noexcept {
  PagePool& pool = is_on_host() ? *host_pool_ : account_->pool();
  const int generation = is_on_host() ? host_pool_->generation() : generation_;
  std::size_t num_freed = 0;
  ForEachOwn(layer, begin, end, [&](std::int64_t page) {
    pool.Free(layers_[layer].pages[page], generation, account_->mark());
    ++num_freed;
  });
  return num_freed * layout_->page_bytes(layer);
}

void PageTables::FreeAllOwn() const noexcept {
  for (int layer = 0; layer < num_layers(); ++layer) {
    FreeOwn(layer, 0, layers_[layer].num_pages());
  }
}

std::size_t PageTables::BytesFrom(int layer, std::int64_t begin) const {
  const std::vector<void*>& pages = layers_[layer].pages;
  if (begin >= layers_[layer].num_pages()) return 0;
  const auto let_go = std::count(pages.begin() + begin, pages.end(), nullptr);
  return static_cast<std::size_t>(pages.end() - pages.begin() - begin - let_go) *
         layout_->page_bytes(layer);
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
      known = own.checksums.data() + (position - first_checksum(layer));
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
  const std::int64_t page_size = layout_->page_size(layer), page = begin / page_size;
  const auto part = [&](const std::vector<std::uint32_t>& known, std::int64_t first) {
    const auto from = known.begin() + (begin - first);
    return std::vector<std::uint32_t>(from, from + (end - begin));
  };
  if (page >= layers_[layer].num_grouped) {
    return part(layers_[layer].checksums, first_checksum(layer));
  }
  const PageGroup::Layer& group = *GroupOf(layer, page);
  return part(group.checksums, group.begin * page_size);
}

std::vector<std::uint32_t> PageTables::ChecksumsOf(int layer, std::int64_t begin,
                                                   std::int64_t end) const {
  std::vector<std::uint32_t> checksums;
  checksums.reserve(static_cast<std::size_t>(end - begin));
  const std::int64_t page_size = layout_->page_size(layer);
  while (begin < end) {
    const std::int64_t page_end = std::min(end, (begin / page_size + 1) * page_size);
    const std::vector<std::uint32_t> part = Checksums(layer, begin, page_end);
    checksums.insert(checksums.end(), part.begin(), part.end());
    begin = page_end;
  }
  return checksums;
}

// --- Appending
// ------------------------------------------------------------------------------------

std::size_t PageTables::MissingBytes(int layer, std::int64_t new_length) const {
  const std::int64_t needed = CeilDiv(new_length, layout_->page_size(layer));
  const std::int64_t held = layers_[layer].num_pages();
  return needed > held ? static_cast<std::size_t>(needed - held) * layout_->page_bytes(layer) : 0;
}

bool PageTables::AppendsToTail(int layer) const {
  const std::int64_t page = length(layer) / layout_->page_size(layer);
  if (has_window(layer)) return windows_[layer].Find(page) != nullptr;
  return layers_[layer].has_tail() && page == layers_[layer].num_grouped;
}

const std::shared_ptr<SharedPage>& PageTables::OwnerOfTail(int layer) const {
  if (!has_window(layer)) return layers_[layer].tail;
  return windows_[layer].Find(length(layer) / layout_->page_size(layer))->owner;
}

std::size_t PageTables::CopyBytes(int layer) const {
  if (!AppendsToTail(layer) || OwnerOfTail(layer).use_count() == 1) return 0;
  return layout_->page_bytes(layer);
}

void PageTables::ForgetTail(int layer) noexcept {
  if (has_window(layer)) {
    const std::int64_t page = length(layer) / layout_->page_size(layer);
    return windows_[layer].Forget(page, page + 1);
  }
  layers_[layer].tail.reset();
  layers_[layer].is_tail_grouped = false;
}

void PageTables::ReleaseTail(int layer) noexcept {
  OwnerOfTail(layer)->TakeBack();
  ForgetTail(layer);
  charged_bytes_ += layout_->page_bytes(layer);
}

absl::Status PageTables::OwnTail(AttentionBackend& backend, int layer) {
  if (!AppendsToTail(layer)) return absl::OkStatus();
  if (OwnerOfTail(layer).use_count() == 1) {
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
  void*& entry = layers_[layer].pages[length(layer) / layout_->page_size(layer)];
  const DevicePageCopy copy{entry, page, page_bytes};
  ATTENTION_RETURN_IF_ERROR(backend.CopyPages({&copy, 1}));
  std::move(free).Cancel();
  std::move(uncharge).Cancel();
  charged_bytes_ += page_bytes;
  entry = page;
  ForgetTail(layer);
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
  layers_[layer].checksums.resize(static_cast<std::size_t>(length - first_checksum(layer)));
}

// --- Sharing
// --------------------------------------------------------------------------------------

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
  to.num_dropped = from.num_dropped;
  to.compacted_length = from.compacted_length;
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

PageTables PageTables::Share(std::span<const std::int64_t> lengths, Windows windows) {
  ATTENTION_CHECK(!is_on_host());
  const std::size_t count = layers_.size();
  Sharing sharing{PageTables(account_, layout_),
                  std::make_shared<PageGroup>(account_, layout_, generation_),
                  std::vector<std::vector<std::uint32_t>>(count),
                  std::vector<std::shared_ptr<SharedPage>>(count),
                  std::vector<std::vector<WindowPage>>(windows_.size())};
  sharing.copy.generation_ = generation_;
  for (int layer = 0; layer < num_layers(); ++layer) {
    if (has_window(layer)) {
      PrepareWindow(layer, lengths[layer], windows, sharing);
    } else {
      PrepareLayer(layer, lengths[layer], sharing);
    }
  }
  groups_.reserve(groups_.size() + 1);
  sharing.copy.groups_.reserve(groups_.size() + 1);

  for (int layer = 0; layer < num_layers(); ++layer) {
    if (has_window(layer)) {
      CommitWindow(layer, sharing);
    } else {
      CommitLayer(layer, lengths[layer], sharing);
    }
  }
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

void PageTables::Truncate(std::span<const std::int64_t> lengths) {
  std::vector<std::vector<std::uint32_t>> tail_checksums(layers_.size());
  for (int layer = 0; layer < num_layers(); ++layer) {
    tail_checksums[layer] = TailChecksums(layer, lengths[layer]);
  }
  for (int layer = 0; layer < num_layers(); ++layer) {
    if (length(layer) <= lengths[layer]) continue;
    if (has_window(layer)) {
      TruncateWindow(layer, lengths[layer]);
    } else {
      TruncateLayer(layer, lengths[layer], std::move(tail_checksums[layer]));
    }
  }
  DropUnusedGroups();
}

std::vector<std::uint32_t> PageTables::TailChecksums(int layer, std::int64_t new_length) const {
  const std::int64_t page_size = layout_->page_size(layer), full = new_length / page_size;
  if (length(layer) <= new_length || full >= layers_[layer].num_grouped) return {};
  return Checksums(layer, full * page_size, new_length);
}

void PageTables::DropPagesFrom(int layer, std::int64_t page) noexcept {
  std::vector<void*>& pages = layers_[layer].pages;
  const std::size_t freed_bytes = FreeOwn(layer, page, layers_[layer].num_pages());
  charged_bytes_ -= freed_bytes;
  account_->GiveBack(freed_bytes);
  bytes_ -= BytesFrom(layer, page);
  if (layers_[layer].num_pages() > page) pages.resize(static_cast<std::size_t>(page));
}

void PageTables::TruncateLayer(int index, std::int64_t length,
                               std::vector<std::uint32_t> tail_checksums) noexcept {
  Layer& layer = layers_[index];
  const std::int64_t page_size = layout_->page_size(index);
  const std::int64_t full = length / page_size;
  const std::int64_t keep = CeilDiv(length, page_size);
  DropPagesFrom(index, keep);
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
