// The totals of each row that the second pass (probe.h) needs: the maximum of its scores, and the
// sum of the exponentials relative to it. In float32 arithmetic whatever the types.
//
// A log-sum-exp in float32 would not do: its last place is worth a factor of e^0.5 where scores are
// 2^23, and the scores of matrix instructions differ from the second pass's in their last places.
//
// A block takes 32 rows of a KV head over the keys of one item, at most 1024 of them that begin at
// a multiple. The block of a tile that comes last merges its ranges from left to right.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/finish_tile.h"
#include "kernels/cuda/kernels/generic/float_tile.h"

namespace attention::cuda {

template <int kHeadDimension>
struct RowTotals {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kThreads = kFloatThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTileRows = kFloatTile;
  static constexpr int kTileKeys = kFloatTile;

  using Tile = FloatTile<kHeadDim>;
  static constexpr int kSharedBytes = (2 * Tile::kFloats + 1) * static_cast<int>(sizeof(float));
  using Arguments = AttendArguments;
  using Span = KeySpan<kTileKeys>;

  const AttendArguments& arguments;
  const DeviceTask& task;
  const WorkItem& item;
  Tile queries, keys;
  std::uint32_t* arrival;
  Span span;
  ScoreRow rows[2];
  RowTotal totals[2];  // sums: of the thread's keys

  ATTENTION_DEVICE RowTotals(const AttendArguments& block_arguments, const WorkItem& block_item,
                             char* shared)
      : arguments(block_arguments),
        task(block_arguments.tasks[block_item.task]),
        item(block_item),
        queries{reinterpret_cast<float*>(shared)},
        keys{queries.memory + Tile::kFloats},
        arrival(reinterpret_cast<std::uint32_t*>(keys.memory + Tile::kFloats)) {
    const std::int64_t last_row = item.row_begin + item.num_rows - 1;
    span = SpanOf<kTileKeys>(task, item.row_begin / task.group, last_row / task.group,
                             item.key_begin, item.key_end);
    for (int i = 0; i < 2; ++i) {
      const std::int64_t row = Min(last_row, item.row_begin + 2 * FloatGroup() + i);
      rows[i] = ScoreRowAt(task, row / task.group,
                           item.kv_head * task.group + static_cast<int>(row % task.group));
      totals[i] = {MinusInfinity(), 0.0f};
    }
  }

  ATTENTION_DEVICE void AddTile(int tile, bool is_masked) {
    float s[2][4];
    FloatDots(task.head_dim_qk, queries, keys, s);
    const bool has_modifiers = HasModifiers(task);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float greatest = totals[i].max;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[i][j] = ScoreOf(task, rows[i], tile + FloatLane() + 8 * j, s[i][j] * task.softmax_scale,
                          is_masked, has_modifiers);
        greatest = Max(greatest, s[i][j]);
      }
      for (int mask = 1; mask < 8; mask *= 2) greatest = Max(greatest, ShuffleXor(greatest, mask));
      const float origin = OriginOf(greatest);
      totals[i].sum *= Correction(totals[i].max, origin);
      totals[i].max = greatest;
#pragma unroll
      for (int j = 0; j < 4; ++j) totals[i].sum += Correction(s[i][j], origin);
    }
  }

  ATTENTION_DEVICE void AddTiles() {
    LoadFloatQueries(
        task, item.num_rows, queries, [&](int row) { return (item.row_begin + row) / task.group; },
        [&](int row) {
          return item.kv_head * task.group + static_cast<int>((item.row_begin + row) % task.group);
        });
    const int end = span.end_tile();
    for (int tile = span.first_tile(); tile < end; tile = span.next_tile(tile)) {
      LoadFloatKv(task, item.kv_head, tile, /*is_value=*/false, keys,
                  [&](int key) { return span.Contains(key); });
      SyncThreads();
      AddTile(tile, span.IsMasked(tile));
      SyncThreads();
    }
  }

  ATTENTION_DEVICE const float* PartialOf(int range, int row) const {
    return arguments.partials + item.partials +
           (static_cast<std::int64_t>(range) * item.num_rows + row) * 2;
  }

  ATTENTION_DEVICE void StoreRows() const {
    for (int i = 0; i < 2; ++i) {
      const int row = 2 * FloatGroup() + i;
      float sum = totals[i].sum;
      for (int mask = 1; mask < 8; mask *= 2) sum += ShuffleXor(sum, mask);
      if (FloatLane() != 0 || row >= item.num_rows) continue;
      if (item.num_ranges == 1) {
        RowWriter(task, item, row, {totals[i].max, sum}).WriteTotals();
      } else {
        auto* partial = const_cast<float*>(PartialOf(item.range, row));
        partial[0] = totals[i].max;
        partial[1] = sum;
      }
    }
  }

  ATTENTION_DEVICE void MergeRanges() const {
    const int row = ThreadIndex();
    if (row >= item.num_rows) return;
    const RowTotal total = TotalOf(
        item.num_ranges, [&](int range) { return LoadFromOtherBlock(PartialOf(range, row)); },
        [&](int range) { return LoadFromOtherBlock(PartialOf(range, row) + 1); });
    RowWriter(task, item, row, total).WriteTotals();
  }

  static ATTENTION_DEVICE void Run(const AttendArguments& arguments, char* shared) {
    const WorkItem& item = arguments.items[BlockIndex()];
    RowTotals block(arguments, item, shared);
    block.AddTiles();
    block.StoreRows();
    if (item.num_ranges == 1) return;
    SyncThreads();
    if (ThreadIndex() == 0) {
      *block.arrival = AtomicAddInOrder(arguments.counters + item.counter, 1u);
    }
    SyncThreads();
    if (*block.arrival != static_cast<std::uint32_t>(item.num_ranges - 1)) return;
    block.MergeRanges();
  }
};

}  // namespace attention::cuda
