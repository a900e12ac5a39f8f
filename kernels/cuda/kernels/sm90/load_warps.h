// The warps of AttendWgmma that compute nothing: the producer, which copies keys and values, and
// the checkers, which clear values that must not be multiplied (pipeline.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/convert.h"
#include "kernels/cuda/kernels/sm90/pipeline.h"

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
  Ring<Pipes::kItemStages> items;
  Ring<Sizes::kStages> key_ring, value_ring;

  // --- The producer ---

  // The block's first item is its own; the others go to whoever comes first. They are sorted, the
  // most expensive first, so the blocks end at about the same time.
  ATTENTION_DEVICE int TakeItem(bool is_first) {
    auto& words = pipes.words();
    if (LaneIndex() == 0) {
      int index = BlockIndex();
      if (!is_first) index = BlockCount() + static_cast<int>(AtomicAdd(arguments.num_taken, 1u));
      WaitForBarrier(&words.item_empty[items.stage], items.parity ^ 1u);
      words.items[items.stage] = index;
      ArriveAtBarrier(&words.item_full[items.stage]);
    }
    SyncWarp();
    const int index = words.items[items.stage];
    items.Advance();
    return index;
  }

  // A lane's share of a tile: the rows that lie in one page; none where there are no bytes.
  struct Part {
    const char* keys = nullptr;  // in the page
    int to = 0;                  // bytes, from the first row of the tile
    int bytes = 0;
  };

  // Pages begin at multiples of 16 tokens, so no group of eight is cut. Pages without a key that
  // some row sees are not touched.
  ATTENTION_DEVICE Part PartOf(const DeviceTask& task, const WorkItem& item, const Span& span,
                               int tile) const {
    const int origin = task.page_origin, page_size = task.layout.page_size;
    const int first = static_cast<int>(static_cast<unsigned>(Max(tile, origin) - origin) /
                                       static_cast<unsigned>(page_size));
    const std::int64_t page = first + LaneIndex();
    const std::int64_t page_begin = origin + page * page_size;
    const auto begin = static_cast<int>(
        Min<std::int64_t>(Max<std::int64_t>(page_begin, tile), tile + Sizes::kTileKeys));
    const auto end =
        static_cast<int>(Min<std::int64_t>(page_begin + page_size, tile + Sizes::kTileKeys));
    if (begin >= end || !span.ContainsAny(begin, end)) return {};
    return {task.pages[page] + item.kv_head * task.layout.head_bytes +
                (begin - page_begin) * Sizes::kRowBytes,
            (begin - tile) * Sizes::kRowBytes, (end - begin) * Sizes::kRowBytes};
  }

  static ATTENTION_DEVICE void Copy(const Part& part, std::int64_t tensor_offset, char* to,
                                    std::uint64_t* full) {
    if (part.bytes == 0) {
      ArriveAtBarrier(full);
      return;
    }
    ArriveExpectingBytes(full, part.bytes);
    CopyBulk(to + part.to, part.keys + tensor_offset, part.bytes, full);
  }

  ATTENTION_DEVICE void LoadKeys(const Part& part) {
    auto& words = pipes.words();
    WaitForBarrier(&words.key_empty[key_ring.stage], key_ring.parity ^ 1u);
    Copy(part, 0, pipes.keys(key_ring.stage), &words.key_full[key_ring.stage]);
    key_ring.Advance();
  }

  ATTENTION_DEVICE void LoadValues(const DeviceTask& task, const Part& part) {
    const std::int64_t offset = task.layout.value_offset;
    auto& words = pipes.words();
    WaitForBarrier(&words.value_empty[value_ring.stage], value_ring.parity ^ 1u);
    Copy(part, offset, pipes.values(value_ring.stage), &words.value_full[value_ring.stage]);
    value_ring.Advance();
  }

  // In the order in which consumers want them: the scores of a tile before the values of the last.
  // Where a tile lies is found out while the stages are still taken.
  ATTENTION_DEVICE void LoadItem(const DeviceTask& task, const WorkItem& item) {
    const Span span = SpanOfItem<Sizes::kTileKeys>(task, item);
    const int end = span.end_tile();
    int tile = span.first_tile();
    if (tile >= end) return;
    Part part = PartOf(task, item, span, tile);
    LoadKeys(part);
    while (tile < end) {
      const int next = span.next_tile(tile);
      Part following;
      if (next < end) {
        following = PartOf(task, item, span, next);
        LoadKeys(following);
      }
      LoadValues(task, part);
      part = following;
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
    char* values = pipes.values(value_ring.stage);
    std::uint32_t has_non_finite = 0;
#pragma unroll 4
    for (int i = checker * 32 + LaneIndex(); i < Sizes::kTileKeys * kPieces;
         i += Sizes::kCheckers * 32) {
      const int row = i / kPieces;
      auto* at = reinterpret_cast<Words4*>(values +
                                           SwizzledPieceOffset(Sizes::kRowBytes, row, i % kPieces));
      const Words4 piece = *at;
      const std::uint32_t bits =
          NonFiniteBits<kType>(piece.words[0]) | NonFiniteBits<kType>(piece.words[1]) |
          NonFiniteBits<kType>(piece.words[2]) | NonFiniteBits<kType>(piece.words[3]);
      const bool is_seen = span.Contains(tile + row);
      if (is_seen && !AreNonFinite(bits)) continue;
      if (is_seen) has_non_finite = 1;
      Words4 cleaned = {{0u, 0u, 0u, 0u}};
      for (int j = 0; is_seen && j < 4; ++j) {
        cleaned.words[j] = ClearedPair<kType>(piece.words[j]);
      }
      *at = cleaned;
    }
    for (int mask = 1; mask < 32; mask *= 2) has_non_finite |= ShuffleXor(has_non_finite, mask);
    if (LaneIndex() == 0) pipes.words().has_non_finite[value_ring.stage][checker] = has_non_finite;
    FenceAsyncProxy();
  }

  ATTENTION_DEVICE void Check(int checker) {
    for (int index = pipes.ReadItem(items); index < arguments.num_items;
         index = pipes.ReadItem(items)) {
      const WorkItem& item = arguments.items[index];
      const Span span = SpanOfItem<Sizes::kTileKeys>(arguments.tasks[item.task], item);
      for (int tile = span.first_tile(); tile < span.end_tile(); tile = span.next_tile(tile)) {
        auto& words = pipes.words();
        WaitForBarrier(&words.value_full[value_ring.stage], value_ring.parity);
        if (span.IsMasked(tile)) CleanValues(span, tile, checker);
        Pipes::ArriveOncePerWarp(&words.value_clean[value_ring.stage]);
        value_ring.Advance();
      }
    }
  }
};

}  // namespace attention::cuda
