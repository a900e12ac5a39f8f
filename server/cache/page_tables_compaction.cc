// Page tables whose tokens are let go and moved together.
#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/check.h"
#include "kernels/base/divide.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/cache/page_tables.h"

namespace attention::server {

// The compaction of one layer.
struct PageTables::Compaction {
  const LayerKeep* keep = nullptr;
  bool is_truncation = false;   // nothing moves
  std::int64_t first_page = 0;  // that changes
  std::vector<void*> pages;     // the new table
  std::vector<void*> copies;    // of those, the ones in place of pages that others have too
  std::int64_t num_grouped = 0;
  std::vector<std::uint32_t> checksums;  // behind the pages of groups
  std::int64_t num_dropped = 0;
  std::int64_t compacted_length = 0;
};

std::int64_t PageTables::FirstMoved(const LayerKeep& keep) {
  std::int64_t first = keep.num_kept();
  for (const std::vector<std::int64_t>& tokens : keep.tokens) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::int64_t place = keep.num_prefix + static_cast<std::int64_t>(i);
      if (tokens[i] == place) continue;
      first = std::min(first, place);
      break;
    }
  }
  return first;
}

std::vector<std::int64_t> PageTables::CopiedPages(const LayerKeep& keep) const {
  const std::int64_t first_moved = FirstMoved(keep);
  if (first_moved == keep.num_kept()) return {};
  const std::int64_t page_size = layout_->page_size(keep.layer);
  std::vector<std::int64_t> copied;
  for (std::int64_t i = first_moved / page_size; i < CeilDiv(keep.num_kept(), page_size); ++i) {
    if (!IsOwn(keep.layer, i)) copied.push_back(i);
  }
  return copied;
}

std::size_t PageTables::KeepBytes(std::span<const LayerKeep> keep) const {
  std::size_t bytes = 0;
  for (const LayerKeep& layer : keep) {
    bytes += CopiedPages(layer).size() * layout_->page_bytes(layer.layer);
  }
  return bytes;
}

// Where positions stay, nobody asks again which rows these were.
std::vector<std::uint32_t> PageTables::KeptChecksums(const LayerKeep& keep, std::int64_t begin,
                                                     Positions positions) const {
  std::vector<std::uint32_t> checksums(static_cast<std::size_t>(keep.num_kept() - begin));
  if (positions == Positions::kStay) return checksums;
  for (std::int64_t i = begin; i < keep.num_kept(); ++i) {
    const std::int64_t token = i < keep.num_prefix ? i : keep.tokens[0][i - keep.num_prefix];
    checksums[i - begin] = Checksums(keep.layer, token, token + 1)[0];
  }
  return checksums;
}

absl::Status PageTables::PrepareKeep(const LayerKeep& keep, Positions positions,
                                     Compaction& compaction) const {
  const Layer& layer = layers_[keep.layer];
  const auto [page_size, page_bytes] = layout_->of(keep.layer);
  compaction.num_dropped = layer.num_dropped;
  compaction.compacted_length = layer.compacted_length;
  const std::int64_t num_gone = length(keep.layer) - keep.num_kept();
  if (positions == Positions::kStay && num_gone > 0) {
    compaction.compacted_length = layer.num_dropped + length(keep.layer);
    compaction.num_dropped += num_gone;
  }
  const std::int64_t first_moved = FirstMoved(keep);
  compaction.is_truncation = first_moved == keep.num_kept();
  if (compaction.is_truncation) {
    compaction.checksums = TailChecksums(keep.layer, keep.num_kept());
    return absl::OkStatus();
  }
  compaction.first_page = first_moved / page_size;
  compaction.num_grouped = std::min(layer.num_grouped, compaction.first_page);
  const std::int64_t first_checksum =
      compaction.num_grouped * page_size + first_position(keep.layer);
  compaction.checksums = KeptChecksums(keep, first_checksum, positions);
  compaction.pages.assign(layer.pages.begin(),
                          layer.pages.begin() + CeilDiv(keep.num_kept(), page_size));
  const std::vector<std::int64_t> copied = CopiedPages(keep);
  compaction.copies.reserve(copied.size());
  for (const std::int64_t index : copied) {
    void* page = account_->pool().Allocate(page_bytes, account_->mark());
    if (page == nullptr) {
      return ReasonedError(
          absl::StatusCode::kResourceExhausted, ErrorReason::kKvExhausted,
          absl::StrCat("no free KV pages: the tokens that stay need ", copied.size(), " pages of ",
                       page_bytes, " bytes in place of those that other sessions read too, ",
                       account_->pool().free_bytes(), " of ", account_->pool().capacity_bytes(),
                       " are free"));
    }
    compaction.copies.push_back(page);
    compaction.pages[index] = page;
  }
  return absl::OkStatus();
}

// Before the first page that changes, the tables agree. If that one is a copy, its tokens come
// along.
void PageTables::AddMoves(const Compaction& compaction,
                          std::vector<std::vector<std::int64_t>>& lists,
                          std::vector<MoveTokensTask>& moves) const {
  const LayerKeep& keep = *compaction.keep;
  if (compaction.is_truncation) return;
  const std::int64_t page_size = layout_->page_size(keep.layer);
  const std::int64_t first_moved = FirstMoved(keep);
  const std::int64_t begin =
      IsOwn(keep.layer, compaction.first_page) ? first_moved : compaction.first_page * page_size;
  const std::int64_t from_prefix = std::max<std::int64_t>(0, keep.num_prefix - begin);
  const std::int64_t skipped = std::max<std::int64_t>(0, begin - keep.num_prefix);
  const std::size_t first_list = lists.size();
  for (const std::vector<std::int64_t>& tokens : keep.tokens) {
    std::vector<std::int64_t>& list =
        lists.emplace_back(static_cast<std::size_t>(keep.num_kept() - begin));
    std::iota(list.begin(), list.begin() + from_prefix, begin);
    std::copy(tokens.begin() + skipped, tokens.end(), list.begin() + from_prefix);
  }
  const PagedKvView to{compaction.pages.data(), static_cast<std::int64_t>(compaction.pages.size()),
                       page_size};
  const KvGeometry& geometry = layout_->shape.layer(keep.layer).geometry;
  for (int head = 0; head < geometry.num_kv_heads; ++head) {
    const std::size_t list = keep.tokens.size() == 1 ? 0 : static_cast<std::size_t>(head);
    moves.push_back({geometry, View(keep.layer), to, head, begin, lists[first_list + list]});
  }
}

void PageTables::CommitKeep(Compaction& compaction) noexcept {
  const LayerKeep& keep = *compaction.keep;
  Layer& layer = layers_[keep.layer];
  layer.num_dropped = compaction.num_dropped;
  layer.compacted_length = compaction.compacted_length;
  if (compaction.is_truncation) {
    if (keep.num_kept() == length(keep.layer)) return;
    if (has_window(keep.layer)) return TruncateWindow(keep.layer, keep.num_kept());
    return TruncateLayer(keep.layer, keep.num_kept(), std::move(compaction.checksums));
  }
  const auto num_pages = static_cast<std::int64_t>(compaction.pages.size());
  DropPagesFrom(keep.layer, num_pages);
  charged_bytes_ += compaction.copies.size() * layout_->page_bytes(keep.layer);
  // From the first page that changes on, all are its own.
  if (has_window(keep.layer)) {
    windows_[keep.layer].Forget(compaction.first_page, std::numeric_limits<std::int64_t>::max());
  } else if (compaction.first_page <= layer.num_grouped) {
    layer.tail.reset();
    layer.is_tail_grouped = false;
  }
  layer.pages = std::move(compaction.pages);
  layer.num_grouped = compaction.num_grouped;
  layer.checksums = std::move(compaction.checksums);
}

absl::Status PageTables::Keep(AttentionBackend& backend, std::span<const LayerKeep> keep,
                              Positions positions) {
  ATTENTION_CHECK(!is_on_host());
  const std::size_t bytes = KeepBytes(keep);
  ATTENTION_RETURN_IF_ERROR(account_->Charge(bytes));
  std::vector<Compaction> compactions(keep.size());
  absl::Cleanup undo = [&] {
    account_->GiveBack(bytes);
    for (const Compaction& compaction : compactions) {
      for (void* page : compaction.copies) {
        account_->pool().Free(page, generation_, account_->mark());
      }
    }
  };
  std::vector<std::vector<std::int64_t>> lists;
  std::vector<MoveTokensTask> moves;
  for (std::size_t i = 0; i < keep.size(); ++i) {
    Compaction& compaction = compactions[i];
    compaction.keep = &keep[i];
    ATTENTION_RETURN_IF_ERROR(PrepareKeep(keep[i], positions, compaction));
    AddMoves(compaction, lists, moves);
  }
  // A failure from here on is the device's, which loses its memory by that.
  ATTENTION_RETURN_IF_ERROR(backend.MoveTokens(moves));
  std::move(undo).Cancel();
  for (Compaction& compaction : compactions) CommitKeep(compaction);
  DropUnusedGroups();
  return absl::OkStatus();
}

}  // namespace attention::server
