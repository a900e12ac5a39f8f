// Attention in float32 arithmetic on the ordinary units: caches of float32, and every combination
// of types that the matrix instructions would round (float16 queries over int8, bfloat16 over
// float16, float32 outputs). Scores and weighted values are chains of fused multiply-adds, so the
// results are as accurate as the CPU backend's.
//
// Keys and values are converted on their way into one buffer of shared memory, which they take in
// turn; two blocks share a multiprocessor and hide each other's copies.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/finish_tile.h"
#include "kernels/cuda/kernels/generic/float_tile.h"

namespace attention::cuda {

template <int kHeadDimension>
struct AttendFloat {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kThreads = kFloatThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTileRows = kFloatTile;
  static constexpr int kTileKeys = kFloatTile;
  static constexpr int kColumns = kHeadDim / 32;  // of 4 channels, for each thread

  using Tile = FloatTile<kHeadDim>;
  using Parts = TileParts<1, kTileRows, kHeadDim>;
  static constexpr int kWeightStride = kTileKeys + 1;
  static constexpr int kSharedBytes = Max(
      (2 * Tile::kFloats + kTileRows * kWeightStride + kTileRows) * static_cast<int>(sizeof(float)),
      Parts::kBytes);

  using Arguments = AttendArguments;
  using Span = KeySpan<kTileKeys>;

  const DeviceTask& task;
  const WorkItem& item;
  Tile queries, kv;
  float* weights;       // [rows][kWeightStride]
  std::uint32_t* seen;  // [rows], bit j: the row sees key j of the tile
  Span span;
  ScoreRow rows[2];

  float o[2][kColumns][4];
  float max[2];
  float sum[2];  // of the thread's keys

  ATTENTION_DEVICE AttendFloat(const DeviceTask& block_task, const WorkItem& block_item,
                               char* shared)
      : task(block_task),
        item(block_item),
        queries{reinterpret_cast<float*>(shared)},
        kv{queries.memory + Tile::kFloats},
        weights(kv.memory + Tile::kFloats),
        seen(reinterpret_cast<std::uint32_t*>(weights + kTileRows * kWeightStride)) {
    const std::int64_t last_row = item.row_begin + item.num_rows - 1;
    span = SpanOf<kTileKeys>(task, item.row_begin / task.group, last_row / task.group,
                             item.key_begin, item.key_end);
    for (int i = 0; i < 2; ++i) {
      const std::int64_t row = Min(last_row, item.row_begin + 2 * FloatGroup() + i);
      rows[i] = ScoreRowAt(task, row / task.group,
                           item.kv_head * task.group + static_cast<int>(row % task.group));
      max[i] = MinusInfinity();
      sum[i] = 0.0f;
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        for (int j = 0; j < 4; ++j) o[i][column][j] = 0.0f;
      }
    }
  }

  ATTENTION_DEVICE void ComputeWeights(int tile, bool is_masked) {
    float s[2][4];
    FloatDots(task.head_dim_qk, queries, kv, s);
    const bool has_modifiers = HasModifiers(task);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float greatest = max[i];
      std::uint32_t bits = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = FloatLane() + 8 * j;
        s[i][j] = ScoreOf(task, rows[i], tile + key, s[i][j] * task.softmax_scale, is_masked,
                          has_modifiers);
        greatest = Max(greatest, s[i][j]);
        if (!(s[i][j] == MinusInfinity())) bits |= 1u << key;
      }
      for (int mask = 1; mask < 8; mask *= 2) {
        greatest = Max(greatest, ShuffleXor(greatest, mask));
        bits |= ShuffleXor(bits, mask);
      }
      const float origin = OriginOf(greatest);
      const float correction = Correction(max[i], origin);
      max[i] = greatest;
      sum[i] *= correction;
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        for (int j = 0; j < 4; ++j) o[i][column][j] *= correction;
      }
      const int row = 2 * FloatGroup() + i;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float p = Correction(s[i][j], origin);
        sum[i] += p;
        weights[row * kWeightStride + FloatLane() + 8 * j] = p;
      }
      if (FloatLane() == 0) seen[row] = bits;
    }
  }

  // A key that a row does not see is left out: its weight is zero, but its value may be NaN.
  ATTENTION_DEVICE void AddValues() {
    const int row = 2 * FloatGroup();
    const std::uint32_t seen_by[2] = {seen[row], seen[row + 1]};
    for (int key = 0; key < kTileKeys; ++key) {
      const float p[2] = {weights[row * kWeightStride + key],
                          weights[(row + 1) * kWeightStride + key]};
      const bool is_seen[2] = {((seen_by[0] >> key) & 1u) != 0, ((seen_by[1] >> key) & 1u) != 0};
      const float* v = kv.row(key) + 4 * FloatLane();
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float value = v[32 * column + j];
          if (is_seen[0]) o[0][column][j] = Fma(p[0], value, o[0][column][j]);
          if (is_seen[1]) o[1][column][j] = Fma(p[1], value, o[1][column][j]);
        }
      }
    }
  }

  ATTENTION_DEVICE void ComputeTiles() {
    LoadFloatQueries(
        task, item.num_rows, queries, [&](int row) { return (item.row_begin + row) / task.group; },
        [&](int row) {
          return item.kv_head * task.group + static_cast<int>((item.row_begin + row) % task.group);
        });
    const auto is_wanted = [&](int key) { return span.Contains(key); };
    const int end = span.end_tile();
    for (int tile = span.first_tile(); tile < end; tile = span.next_tile(tile)) {
      LoadFloatKv(task, item.kv_head, tile, /*is_value=*/false, kv, is_wanted);
      SyncThreads();
      ComputeWeights(tile, span.IsMasked(tile));
      SyncThreads();
      LoadFloatKv(task, item.kv_head, tile, /*is_value=*/true, kv, is_wanted);
      SyncThreads();
      AddValues();
      SyncThreads();
    }
    SyncThreads();
  }

  ATTENTION_DEVICE void StoreParts(const Parts& parts) {
    for (int i = 0; i < 2; ++i) {
      const int row = 2 * FloatGroup() + i;
      float total = sum[i];
      for (int mask = 1; mask < 8; mask *= 2) total += ShuffleXor(total, mask);
      if (FloatLane() == 0) {
        parts.max(0, row) = max[i];
        parts.sum(0, row) = total;
      }
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        for (int j = 0; j < 4; ++j) {
          parts.o(0, row)[32 * column + 4 * FloatLane() + j] = o[i][column][j];
        }
      }
    }
  }

  static ATTENTION_DEVICE void Run(const AttendArguments& arguments, char* shared) {
    const WorkItem& item = arguments.items[BlockIndex()];
    const DeviceTask& task = arguments.tasks[item.task];
    AttendFloat block(task, item, shared);
    block.ComputeTiles();
    const Parts parts{reinterpret_cast<float*>(shared)};
    block.StoreParts(parts);
    SyncThreads();
    FinishTile<kThreads>(arguments, task, item, parts, ThreadIndex(), SyncThreads);
  }
};

}  // namespace attention::cuda
