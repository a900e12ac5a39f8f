// The warps of AttendWgmma that compute nothing: the producer, which copies keys and values, and
// the checkers, which clear values that must not be multiplied (pipeline.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/base/convert.h"
#include "kernels/cuda/sm90/pipeline.h"

namespace attention::cuda {

struct alignas(16) Words4 {
  std::uint32_t words[4];
};

template <DType kType, typename Sizes>
struct LoadWarps {
  using Pipes = Pipeline<Sizes>;
  using Span = KeySpan<Sizes::kTileKeys>;

  const AttendArguments& arguments;
  Pipes pipes;
  Ring<Pipes::kItemPlaces> items;
  Ring<Sizes::kStages> key_ring, value_ring;

  // --- The producer ---

  // The block's first item is its own; the others go to whoever comes first. They are sorted, the
  // dearest first, so the blocks end at about the same time.
  ATTENTION_DEVICE int TakeItem(bool is_first) {
    auto& words = pipes.words();
    if (LaneIndex() == 0) {
      int index = BlockIndex();
      if (!is_first) index = BlockCount() + static_cast<int>(AtomicAdd(arguments.num_taken, 1u));
      WaitForBarrier(&words.item_empty[items.place], items.parity ^ 1u);
      words.items[items.place] = index;
      ArriveAtBarrier(&words.item_full[items.place]);
    }
    SyncWarp();
    const int index = words.items[items.place];
    items.Advance();
    return index;
  }

  static ATTENTION_DEVICE bool HasKeys(const Span& span, int begin, int end) {
    return Max(begin, span.window_begin) < Min(end, span.end) ||
           Max(begin, span.kv_begin) < Min(end, span.sink_end);
  }

  // Each lane copies what one page has of the tile. Pages begin at multiples of 16 tokens, so no
  // group of eight is cut. Pages without a key that some row sees are not touched.
  ATTENTION_DEVICE void LoadTensor(const DeviceTask& task, const WorkItem& item, const Span& span,
                                   int tile, bool is_value, char* to, std::uint64_t* full) const {
    const PageLayout& layout = task.layout;
    const int origin = task.page_origin;
    const int page = (Max(tile, origin) - origin) / layout.page_size + LaneIndex();
    const std::int64_t page_begin = origin + static_cast<std::int64_t>(page) * layout.page_size;
    const auto begin = static_cast<int>(
        Min<std::int64_t>(Max<std::int64_t>(page_begin, tile), tile + Sizes::kTileKeys));
    const auto end =
        static_cast<int>(Min<std::int64_t>(page_begin + layout.page_size, tile + Sizes::kTileKeys));
    if (begin >= end || !HasKeys(span, begin, end)) {
      ArriveAtBarrier(full);
      return;
    }
    const int bytes = (end - begin) * Sizes::kRowBytes;
    ArriveExpectingBytes(full, bytes);
    const char* head = task.pages[page] + item.kv_head * layout.head_bytes;
    CopyBulk(to + (begin - tile) * Sizes::kRowBytes,
             head + (is_value ? layout.value_offset : 0) +
                 (begin - page_begin) * static_cast<std::int64_t>(Sizes::kRowBytes),
             bytes, full);
  }

  ATTENTION_DEVICE void LoadKeys(const DeviceTask& task, const WorkItem& item, const Span& span,
                                 int tile) {
    auto& words = pipes.words();
    WaitForBarrier(&words.key_empty[key_ring.place], key_ring.parity ^ 1u);
    LoadTensor(task, item, span, tile, /*is_value=*/false, pipes.keys(key_ring.place),
               &words.key_full[key_ring.place]);
    key_ring.Advance();
  }

  ATTENTION_DEVICE void LoadValues(const DeviceTask& task, const WorkItem& item, const Span& span,
                                   int tile) {
    auto& words = pipes.words();
    WaitForBarrier(&words.value_empty[value_ring.place], value_ring.parity ^ 1u);
    LoadTensor(task, item, span, tile, /*is_value=*/true, pipes.values(value_ring.place),
               &words.value_full[value_ring.place]);
    value_ring.Advance();
  }

  // In the order in which consumers want them: the scores of a tile before the values of the last.
  ATTENTION_DEVICE void LoadItem(const DeviceTask& task, const WorkItem& item) {
    const Span span = SpanOfItem<Sizes::kTileKeys>(task, item);
    const int end = span.end_tile();
    int tile = span.first_tile();
    if (tile < end) LoadKeys(task, item, span, tile);
    while (tile < end) {
      const int next = span.next_tile(tile);
      if (next < end) LoadKeys(task, item, span, next);
      LoadValues(task, item, span, tile);
      tile = next;
    }
  }

  ATTENTION_DEVICE void Produce() {
    int index = TakeItem(/*is_first=*/true);
    while (index < arguments.num_items) {
      const WorkItem& item = arguments.items[index];
      LoadItem(arguments.tasks[item.task], item);
      index = TakeItem(/*is_first=*/false);
    }
  }

  // --- The checkers ---

  // Clears this warp's share of a tile. Values that are not finite are remembered: consumers add
  // them, from the page, to the rows that see them. Those that no row sees are not.
  ATTENTION_DEVICE void CleanValues(const Span& span, int tile, int checker) const {
    constexpr int kPieces = Sizes::kRowBytes / kPieceBytes;
    char* values = pipes.values(value_ring.place);
    std::uint32_t is_broken = 0;
    for (int i = checker * 32 + LaneIndex(); i < Sizes::kTileKeys * kPieces;
         i += Sizes::kCheckers * 32) {
      const int row = i / kPieces;
      auto* at = reinterpret_cast<Words4*>(values +
                                           SwizzledPieceOffset(Sizes::kRowBytes, row, i % kPieces));
      if (!span.Contains(tile + row)) {
        *at = Words4{{0u, 0u, 0u, 0u}};
        continue;
      }
      Words4 piece = *at;
      bool is_piece_broken = false;
      for (std::uint32_t& word : piece.words) {
        if (!IsPairBroken<kType>(word)) continue;
        is_piece_broken = true;
        word = ClearedPair<kType>(word);
      }
      if (!is_piece_broken) continue;
      is_broken = 1;
      *at = piece;
    }
    for (int mask = 1; mask < 32; mask *= 2) is_broken |= ShuffleXor(is_broken, mask);
    if (LaneIndex() == 0) pipes.words().is_broken[value_ring.place][checker] = is_broken;
    FenceAsyncProxy();
  }

  ATTENTION_DEVICE void Check(int checker) {
    for (int index = pipes.ReadItem(items); index < arguments.num_items;
         index = pipes.ReadItem(items)) {
      const WorkItem& item = arguments.items[index];
      const Span span = SpanOfItem<Sizes::kTileKeys>(arguments.tasks[item.task], item);
      for (int tile = span.first_tile(); tile < span.end_tile(); tile = span.next_tile(tile)) {
        auto& words = pipes.words();
        WaitForBarrier(&words.value_full[value_ring.place], value_ring.parity);
        if (span.IsMasked(tile)) CleanValues(span, tile, checker);
        Pipes::ArriveOncePerWarp(&words.value_clean[value_ring.place]);
        value_ring.Advance();
      }
    }
  }
};

}  // namespace attention::cuda
