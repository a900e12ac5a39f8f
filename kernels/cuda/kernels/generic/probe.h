// The second pass over scores: attention weights, or their sums over the queries, from the totals
// of row_totals.h. In float32 arithmetic whatever the types: the scores are those of the totals to
// the bit, as those of the matrix instructions would not be.
//
// A block takes 32 keys of one query head. For weights it takes one tile of 32 queries, and writes
// zeros for what is invisible. For column sums it takes all queries, tile after tile in ascending
// order; within a tile a thread adds its two rows, and the groups follow in order, so the sums do
// not depend on anything but the task.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/generic/float_tile.h"

namespace attention::cuda {

template <int kHeadDimension>
struct Probe {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kThreads = kFloatThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTileRows = kFloatTile;
  static constexpr int kTileKeys = kFloatTile;

  using Tile = FloatTile<kHeadDim>;
  static constexpr int kGroups = kThreads / 8;
  static constexpr int kSharedBytes =
      (2 * Tile::kFloats + kGroups * kTileKeys) * static_cast<int>(sizeof(float));
  using Arguments = ProbeArguments;

  const DeviceTask& task;
  const ProbeItem& item;
  Tile queries, keys;
  float* group_sums;  // [groups][keys]

  ATTENTION_DEVICE float WeightOf(const ScoreRow& row, int key, float dot,
                                  bool has_modifiers) const {
    const float score =
        ScoreOf(task, row, key, dot * task.softmax_scale, /*is_masked=*/true, has_modifiers);
    if (score == MinusInfinity()) return 0.0f;
    const float* total = task.totals + 2 * (row.query * task.num_q_heads + row.head);
    return Correction(score, total[0]) * total[1];
  }

  // The weights of the thread's rows and keys; zero for rows past the end.
  ATTENTION_DEVICE void ComputeWeights(std::int64_t first_query, float (&p)[2][4]) const {
    FloatDots(task.head_dim_qk, queries, keys, p);
    const bool has_modifiers = HasModifiers(task);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t query = first_query + 2 * FloatGroup() + i;
      const bool exists = query < item.q_end;
      const ScoreRow row = ScoreRowAt(task, exists ? query : first_query, item.head);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = item.key_begin + FloatLane() + 8 * j;
        p[i][j] = exists && key < task.kv_len ? WeightOf(row, key, p[i][j], has_modifiers) : 0.0f;
      }
    }
  }

  ATTENTION_DEVICE void StoreWeights(std::int64_t first_query, const float (&p)[2][4]) const {
    for (int i = 0; i < 2; ++i) {
      const std::int64_t query = first_query + 2 * FloatGroup() + i;
      if (query >= item.q_end) continue;
      float* out = task.weights +
                   ((query - task.weights_q_begin) * task.num_q_heads + item.head) * task.kv_len;
      for (int j = 0; j < 4; ++j) {
        const int key = item.key_begin + FloatLane() + 8 * j;
        if (key < task.kv_len) out[key] = p[i][j];
      }
    }
  }

  ATTENTION_DEVICE void LoadQueries(std::int64_t first_query) const {
    const auto num_rows = static_cast<int>(Min<std::int64_t>(kTileRows, item.q_end - first_query));
    LoadFloatQueries(
        task, num_rows, queries, [&](int row) { return first_query + row; },
        [&](int) { return item.head; });
  }

  ATTENTION_DEVICE void LoadKeys() const {
    const KeySpan<kTileKeys> span =
        SpanOf<kTileKeys>(task, item.q_begin, item.q_end - 1, 0, task.kv_len);
    LoadFloatKv(task, item.head / task.group, item.key_begin, /*is_value=*/false, keys,
                [&](int key) { return span.Contains(key); });
  }

  ATTENTION_DEVICE void SumColumns() const {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (std::int64_t first = item.q_begin; first < item.q_end; first += kTileRows) {
      LoadQueries(first);
      SyncThreads();
      float p[2][4];
      ComputeWeights(first, p);
      for (int j = 0; j < 4; ++j) sums[j] += p[0][j] + p[1][j];
      SyncThreads();
    }
    for (int j = 0; j < 4; ++j) {
      group_sums[FloatGroup() * kTileKeys + FloatLane() + 8 * j] = sums[j];
    }
    SyncThreads();
    const int key = item.key_begin + ThreadIndex();
    if (ThreadIndex() >= kTileKeys || key >= task.kv_len) return;
    float total = 0.0f;
    for (int group = 0; group < kGroups; ++group) {
      total += group_sums[group * kTileKeys + ThreadIndex()];
    }
    task.column_sums[static_cast<std::int64_t>(key) * task.num_q_heads + item.head] = total;
  }

  static ATTENTION_DEVICE void Run(const ProbeArguments& arguments, char* shared) {
    const ProbeItem& item = arguments.items[BlockIndex()];
    const DeviceTask& task = arguments.tasks[item.task];
    auto* memory = reinterpret_cast<float*>(shared);
    const Probe block{task, item, {memory}, {memory + Tile::kFloats}, memory + 2 * Tile::kFloats};
    block.LoadKeys();
    if (item.is_column_sum) {
      block.SumColumns();
      return;
    }
    block.LoadQueries(item.q_begin);
    SyncThreads();
    float p[2][4];
    block.ComputeWeights(item.q_begin, p);
    block.StoreWeights(item.q_begin, p);
  }
};

}  // namespace attention::cuda
