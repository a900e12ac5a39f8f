// A warp's share of at most 16 rows of a KV head, slice by slice of 16 keys: scores, a
// softmax of its own, and the sum of the values, on matrix instructions (m16n8k16). Queries and
// outputs have one 16-bit type, keys and values that type, or int8 or float8_e4m3 beside bfloat16.
//
// Quantized values become bfloat16, which holds them exactly, on their way into fragments; scales
// go to scores and weights. A word of quantized values has four where a fragment wants two pairs
// that are eight apart. Keys: the product runs over the elements, so those of the queries are taken
// in the same order. Values: channels of a result may lie anywhere, so columns of block 4 j + i are
// the channels 32 j + 4 n + i.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/decode_sizes.h"
#include "kernels/cuda/kernels/common/online_softmax.h"
#include "kernels/cuda/kernels/common/packed_row.h"

namespace attention::cuda {

// Copies::kHasExactDims: the task's head dims are the kernel's. Only then are the loads of a
// product's steps under way together.
template <typename DecodeSizesOfKernel, typename Copies>
struct DecodeWarp {
  using Sizes = DecodeSizesOfKernel;
  using Buffer = StageBuffer<Sizes>;
  using Scores = float[2][4];
  static constexpr DType kType = Sizes::kType;
  static constexpr int kHeadDim = Sizes::kHeadDim;

  const DeviceTask& task;
  const WorkItem& item;
  const char* queries;  // in shared memory
  int lane;
  // Kept: read from the task for each slice, they would be most of what a slice waits for.
  float softmax_scale;
  bool has_modifiers;
  KeySpan<Sizes::kTileKeys> span;

  float o[kHeadDim / 8][4];
  float max[2];
  float sum[2];  // of the lane's columns

  ATTENTION_DEVICE DecodeWarp(const DeviceTask& block_task, const WorkItem& block_item,
                              const char* block_queries)
      : task(block_task),
        item(block_item),
        queries(block_queries),
        lane(LaneIndex()),
        softmax_scale(block_task.softmax_scale),
        has_modifiers(HasModifiers(block_task)),
        span(SpanOfItem<Sizes::kTileKeys>(block_task, block_item)) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      max[i] = MinusInfinity();
      sum[i] = 0.0f;
    }
#pragma unroll
    for (int block = 0; block < kHeadDim / 8; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[block][i] = 0.0f;
    }
  }

  // The lane's row g or g + 8. Found out for slices that are masked or modified: kept, it would
  // take registers that let another block run.
  ATTENTION_DEVICE ScoreRow RowOf(int half) const {
    const PackedRow row(task, item, Min(item.num_rows - 1, lane / 4 + 8 * half));
    return ScoreRowAt(task, row.query, item.kv_head * task.group + row.head);
  }

  // True if some row sees a key of the slice that begins with `key`.
  ATTENTION_DEVICE bool IsSeen(int key) const {
    return span.ContainsAny(key, key + Sizes::kSliceKeys);
  }
  // True if a row may not see some key of it.
  ATTENTION_DEVICE bool IsMasked(int key) const {
    return span.IsMasked(key, key + Sizes::kSliceKeys);
  }

  ATTENTION_DEVICE void LoadQueries(int step, std::uint32_t (&a)[4]) const {
    if constexpr (Sizes::kHasScales) {
      // Elements 4 t to 4 t + 3 of rows g and g + 8.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto* words = reinterpret_cast<const std::uint32_t*>(
            queries + (lane / 4 + 8 * half) * Sizes::kQueryStride + step * 32 + lane % 4 * 8);
        a[half] = words[0];
        a[2 + half] = words[1];
      }
    } else {
      LoadMatrix4(a, queries + lane % 16 * Sizes::kQueryStride + step * 32 + lane / 16 * 16);
    }
  }

  // --- Quantized values ---

  // Quantized values at bytes `first` of `low` and `second` of `high` as a pair.
  static ATTENTION_DEVICE std::uint32_t PairOfQuantized(std::uint32_t low, std::uint32_t first,
                                                        std::uint32_t high, std::uint32_t second) {
    if constexpr (Sizes::kKvType == DType::kFloat8E4M3) {
      const std::uint32_t selector = first << 4 | (4 + second) << 12;
      return Float8PairToBFloat(PermuteBytes(low, high, selector));
    } else {
      return PackPair<kType>(QuantizedToFloat(low, first), QuantizedToFloat(high, second));
    }
  }
  // The mantissa of 2^23 takes the value plus 128: integers become floats by an addition.
  static ATTENTION_DEVICE float QuantizedToFloat(std::uint32_t word, std::uint32_t byte) {
    constexpr std::uint32_t kTwoTo23 = 0x4b000000u;
    const std::uint32_t bits = PermuteBytes(word ^ 0x80808080u, kTwoTo23, 0x7440u | byte);
    return FloatOf(bits) - (0x1p23f + 128.0f);
  }

  // --- Scores ---

  ATTENTION_DEVICE void AddScores(Buffer buffer, int step, const std::uint32_t (&a)[4],
                                  float (&s)[2][4]) const {
    std::uint32_t b[4];
    const int row = lane % 8 + lane / 16 * 8;
    LoadMatrix4(b, buffer.keys() + Buffer::PieceAt(row, 2 * step + lane / 8 % 2));
    Mma<kType>(s[0], a, b[0], b[1]);
    Mma<kType>(s[1], a, b[2], b[3]);
  }

  // A piece is 16 elements, a step.
  ATTENTION_DEVICE void AddQuantizedScores(Buffer buffer, int step, const std::uint32_t (&a)[4],
                                           const std::uint32_t (&next)[4], float (&s)[2][4]) const {
    std::uint32_t b[4];
    LoadMatrix4(b, buffer.keys() + Buffer::PieceAt(lane % 16, step + lane / 16));
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      Mma<kType>(s[block], a, PairOfQuantized(b[block], 0, b[block], 1),
                 PairOfQuantized(b[block], 2, b[block], 3));
      Mma<kType>(s[block], next, PairOfQuantized(b[2 + block], 0, b[2 + block], 1),
                 PairOfQuantized(b[2 + block], 2, b[2 + block], 3));
    }
  }

  ATTENTION_DEVICE void ComputeScores(Buffer buffer, Scores& s) const {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[block][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; step += 2) {
      if (!Copies::kHasExactDims && step * 16 >= task.head_dim_qk) break;  // what follows is zero
      std::uint32_t a[2][4];
      LoadQueries(step, a[0]);
      LoadQueries(step + 1, a[1]);
      if constexpr (Sizes::kHasScales) {
        AddQuantizedScores(buffer, step, a[0], a[1], s);
      } else {
        AddScores(buffer, step, a[0], s);
        AddScores(buffer, step + 1, a[1], s);
      }
    }
  }

  // The key of a lane's element of a score fragment, counted from the slice's first.
  ATTENTION_DEVICE int KeyInSlice(int block, int i) const {
    return block * 8 + lane % 4 * 2 + (i & 1);
  }

  // From dot products to scores. `key` is the slice's first.
  ATTENTION_DEVICE void ModifyScores(int key, Buffer buffer, Scores& s) const {
    const auto scaled = [&](int block, int i, float dot) {
      if constexpr (Sizes::kHasScales) dot *= buffer.key_scales()[KeyInSlice(block, i)];
      return dot * softmax_scale;
    };
    const bool is_masked = IsMasked(key);
    if (!is_masked && !has_modifiers) {
#pragma unroll
      for (int block = 0; block < 2; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[block][i] = scaled(block, i, s[block][i]);
      }
      return;
    }
    const ScoreRow rows[2] = {RowOf(0), RowOf(1)};
    cuda::ModifyScores(
        task, rows, is_masked, [&](int block, int i) { return key + KeyInSlice(block, i); }, scaled,
        s);
  }

  // The scores of a slice; the maxima rise to them. The keys are not needed any more.
  ATTENTION_DEVICE void ScoreSlice(int key, Buffer buffer, Scores& s) {
    ComputeScores(buffer, s);
    ModifyScores(key, buffer, s);
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factor[half] = RaiseMaximum(s, half, kLog2E, max[half], sum[half]);
    }
    if (!IsAnyScaled(factor[0], factor[1])) return;
    ScaleRow(o, 0, factor[0]);
    ScaleRow(o, 1, factor[1]);
  }

  // --- Values ---

  // Clears the rows of keys that no row sees; whether others have elements that are not finite.
  ATTENTION_DEVICE bool ClearUnseenValues(int key, Buffer buffer) const {
    constexpr int kPieces = Sizes::kKvRowBytes / kPieceBytes;
    std::uint32_t has_non_finite = 0;
#pragma unroll 1
    for (int i = lane; i < Sizes::kSliceKeys * kPieces; i += 32) {
      const int row = i / kPieces;
      auto* words =
          reinterpret_cast<std::uint32_t*>(buffer.values() + Buffer::PieceAt(row, i % kPieces));
      const bool is_seen = span.Contains(key + row);
      for (int j = 0; j < 4; ++j) {
        if (!is_seen) words[j] = 0;
        has_non_finite |= IsPairNonFinite<kType>(words[j]) ? 1u : 0u;
      }
    }
    for (int mask = 1; mask < 32; mask *= 2) has_non_finite |= ShuffleXor(has_non_finite, mask);
    Copies::JoinWrites();
    SyncWarp();
    return has_non_finite != 0;
  }

  // A weight of zero times a value that is not finite would be NaN: those are added by hand.
  ATTENTION_DEVICE void MoveNonFiniteValues(Buffer buffer, const float (&s)[2][4]) {
    const auto pair_of = [&](int key, int block) {
      return *reinterpret_cast<const std::uint32_t*>(buffer.values() + Buffer::PieceAt(key, block) +
                                                     lane % 4 * 4);
    };
    AddNonFiniteValues<kType>(FindSeenKeys(s, 0), FindSeenKeys(s, 1), pair_of, o);
    SyncWarp();
    auto* words = reinterpret_cast<std::uint32_t*>(buffer.values());
#pragma unroll 1
    for (int i = lane; i < Sizes::kTensorBytes / 4; i += 32) {
      if (IsPairNonFinite<kType>(words[i])) words[i] = ClearedPair<kType>(words[i]);
    }
    Copies::JoinWrites();
    SyncWarp();
  }

  // A weight with its value's scale. A weight of zero stays zero beside a scale that is NaN.
  ATTENTION_DEVICE float Weight(Buffer buffer, int block, int i, float p) const {
    if constexpr (Sizes::kHasScales) {
      return p == 0.0f ? 0.0f : p * buffer.value_scales()[KeyInSlice(block, i)];
    }
    return p;
  }

  ATTENTION_DEVICE void AddValues(Buffer buffer, const std::uint32_t (&a)[4]) {
#pragma unroll
    for (int pair = 0; pair < kHeadDim / 16; ++pair) {
      if (!Copies::kHasExactDims && pair * 16 >= task.head_dim_v) break;
      std::uint32_t b[4];
      LoadMatrix4Transposed(b, buffer.values() + Buffer::PieceAt(lane % 16, 2 * pair + lane / 16));
      Mma<kType>(o[2 * pair], a, b[0], b[1]);
      Mma<kType>(o[2 * pair + 1], a, b[2], b[3]);
    }
  }

  ATTENTION_DEVICE void AddQuantizedValues(Buffer buffer, const std::uint32_t (&a)[4]) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int four = 0; four < kHeadDim / 32; ++four) {
      if (!Copies::kHasExactDims && four * 32 >= task.head_dim_v) break;
      std::uint32_t words[4];  // channels 4 g to 4 g + 3 of keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = 2 * t + j % 2 + j / 2 * 8;
        words[j] = *reinterpret_cast<const std::uint32_t*>(
            buffer.values() + Buffer::PieceAt(row, 2 * four + g / 4) + g % 4 * 4);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto byte = static_cast<std::uint32_t>(i);
        Mma<kType>(o[4 * four + i], a, PairOfQuantized(words[0], byte, words[1], byte),
                   PairOfQuantized(words[2], byte, words[3], byte));
      }
    }
  }

  // Adds the values of a slice by its scores, which become weights.
  ATTENTION_DEVICE void WeighSlice(int key, Buffer buffer, Scores& s) {
    // Quantized values are always finite.
    if constexpr (!Sizes::kHasScales) {
      if (IsMasked(key) && ClearUnseenValues(key, buffer)) MoveNonFiniteValues(buffer, s);
    }
    Exponentiate(s, kLog2E, max, sum);
    std::uint32_t a[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int block = j / 2, i = 2 * (j % 2);
      a[j] = PackPair<kType>(Weight(buffer, block, i, s[block][i]),
                             Weight(buffer, block, i + 1, s[block][i + 1]));
    }
    if constexpr (Sizes::kHasScales) {
      AddQuantizedValues(buffer, a);
    } else {
      AddValues(buffer, a);
    }
  }

  // --- The result ---

  ATTENTION_DEVICE int ChannelOf(int block, int i) const {
    const int column = lane % 4 * 2 + i;
    return Sizes::kHasScales ? block / 4 * 32 + column * 4 + block % 4 : block * 8 + column;
  }

  // Stores those of the rows that the item has.
  template <typename Parts>
  ATTENTION_DEVICE void StoreParts(const Parts& parts, int part) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      const float total = SumOfLanes(sum[half]);
      if (row >= item.num_rows) continue;
      if (lane % 4 == 0) {
        parts.max(part, row) = max[half];
        parts.sum(part, row) = total;
      }
#pragma unroll
      for (int block = 0; block < kHeadDim / 8; ++block) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          parts.o(part, row)[ChannelOf(block, i)] = o[block][2 * half + i];
        }
      }
    }
  }
};

}  // namespace attention::cuda
