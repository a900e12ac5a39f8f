// Attention on matrix instructions of 16-bit types (m16n8k16): prefill whose queries and outputs
// have one 16-bit type, over a cache of that type, or of int8 or float8_e4m3 beside bfloat16; and
// steps of more rows than AttendDecode takes.
//
// A block computes a tile of rows of one KV head over the keys of one item, with the online softmax
// of FlashAttention-2 (Dao 2023). Keys and values come tile by tile through asynchronous copies,
// one tile ahead. Each warp has 16 of the rows.
//
// Shared memory of a block, for D = kHeadDim (README.md derives the sizes):
//
//   queries [rows][D] | 2 stages x (keys [tile][D], values [tile][D])
//   with row scales: the scales beside each stage | keys and values of the present tile as bfloat16
//
// Rows are swizzled in pieces of 16 bytes, so that the eight rows of an 8 x 8 matrix lie in
// different banks. After the last tile the same memory takes the parts of the result.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/finish_tile.h"
#include "kernels/cuda/kernels/common/online_softmax.h"

namespace attention::cuda {

template <DType kElementType, DType kStoredType, int kHeadDimension>
struct AttendMma {
  static constexpr DType kType = kElementType;
  static constexpr DType kKvType = kStoredType;
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kWarps = 4;
  static constexpr bool kHasScales = HasRowScales(kKvType);
  static constexpr int kTileKeys = kHeadDim <= 128 ? 64 : 32;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTileRows = 16 * kWarps;
  // Copies of a loop's body. At 256 dims the output leaves few registers for what they keep ahead.
  static constexpr int kCopyUnroll = kHeadDim <= 128 ? 4 : 1;
  static constexpr int kStepUnroll = kHeadDim <= 128 ? kHeadDim / 16 : 4;

  static constexpr int kRowBytes = 2 * kHeadDim;
  static constexpr int kKvRowBytes = static_cast<int>(DTypeBytes(kKvType)) * kHeadDim;
  static constexpr int kQueryBytes = kTileRows * kRowBytes;
  static constexpr int kTensorBytes = kTileKeys * kKvRowBytes;  // of one stage
  static constexpr int kScaleBytes = kHasScales ? kTileKeys * 4 : 0;
  static constexpr int kStageBytes = 2 * (kTensorBytes + kScaleBytes);
  static constexpr int kConvertedBytes = kHasScales ? kTileKeys * kRowBytes : 0;  // of one tensor
  using Parts = TileParts<1, kTileRows, kHeadDim>;
  static constexpr int kSharedBytes =
      Max(kQueryBytes + 2 * kStageBytes + 2 * kConvertedBytes, Parts::kBytes);

  using Arguments = AttendArguments;
  using Span = KeySpan<kTileKeys>;

  const DeviceTask& task;
  const WorkItem& item;
  char* shared;
  Span span;
  int lane, warp;
  ScoreRow rows[2];  // of the lane's rows g and g + 8

  float o[kHeadDim / 8][4];
  float max[2];
  float sum[2];  // of the lane's columns

  // --- Shared memory ---

  // The offset of 16 bytes of a row; `piece` counts them.
  static ATTENTION_DEVICE int Swizzled(int row, int piece, int row_bytes) {
    return row * row_bytes + ((piece ^ (row & 7 & (row_bytes / 16 - 1))) * 16);
  }
  ATTENTION_DEVICE char* queries() const { return shared; }
  ATTENTION_DEVICE char* stored_keys(int stage) const {
    return shared + kQueryBytes + stage * kStageBytes;
  }
  ATTENTION_DEVICE char* stored_values(int stage) const {
    return stored_keys(stage) + kTensorBytes;
  }
  ATTENTION_DEVICE float* key_scales(int stage) const {
    return reinterpret_cast<float*>(stored_values(stage) + kTensorBytes);
  }
  ATTENTION_DEVICE float* value_scales(int stage) const { return key_scales(stage) + kTileKeys; }
  // As the matrix instructions read them.
  ATTENTION_DEVICE char* keys(int stage) const {
    return kHasScales ? shared + kQueryBytes + 2 * kStageBytes : stored_keys(stage);
  }
  ATTENTION_DEVICE char* values(int stage) const {
    return kHasScales ? keys(stage) + kConvertedBytes : stored_values(stage);
  }

  ATTENTION_DEVICE AttendMma(const DeviceTask& block_task, const WorkItem& block_item,
                             char* block_shared)
      : task(block_task), item(block_item), shared(block_shared) {
    warp = ThreadIndex() / 32;
    lane = ThreadIndex() % 32;
    const std::int64_t last_row = item.row_begin + item.num_rows - 1;
    span = SpanOf<kTileKeys>(task, item.row_begin / task.group, last_row / task.group,
                             item.key_begin, item.key_end);
    for (int i = 0; i < 2; ++i) {
      const std::int64_t row = Min(last_row, item.row_begin + warp * 16 + lane / 4 + 8 * i);
      rows[i] = ScoreRowAt(task, row / task.group,
                           item.kv_head * task.group + static_cast<int>(row % task.group));
      max[i] = MinusInfinity();
      sum[i] = 0.0f;
    }
#pragma unroll
    for (int block = 0; block < kHeadDim / 8; ++block) {
      for (int i = 0; i < 4; ++i) o[block][i] = 0.0f;
    }
  }

  // True if the warp has rows to compute.
  ATTENTION_DEVICE bool IsActive() const { return warp * 16 < item.num_rows; }

  // --- Copies ---

  ATTENTION_DEVICE void LoadQueries() const {
    constexpr int kPieces = kRowBytes / 16;
    const int row_bytes = PadDim(task.head_dim_qk) * 2;
    for (int i = ThreadIndex(); i < kTileRows * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool is_wanted = row < item.num_rows && piece * 16 < row_bytes;
      const std::int64_t packed = item.row_begin + row;
      const std::int64_t index =
          packed / task.group * task.num_q_heads + item.kv_head * task.group + packed % task.group;
      const char* source = is_wanted ? task.q + index * row_bytes + piece * 16 : task.q;
      CopyAsync16(queries() + Swizzled(row, piece, kRowBytes), source, is_wanted);
    }
  }

  static constexpr int kSliceKeys = 16;  // pages begin at multiples of so many tokens

  // A share of 16 rows of a tensor, from `row` of the tile on.
  ATTENTION_DEVICE void LoadSlice(const char* from, int row_bytes, bool is_swizzled, bool is_read,
                                  char* to, int row, int share) const {
    constexpr int kPieces = kKvRowBytes / 16;
    constexpr int kShares = kWarps * kSliceKeys / kTileKeys;
#pragma unroll kCopyUnroll
    for (int i = share * 32 + lane; i < kSliceKeys * kPieces; i += kShares * 32) {
      const int slice_row = i / kPieces, piece = i % kPieces;
      const bool is_wanted = is_read && piece * kPieceBytes < row_bytes;
      const int offset = is_swizzled ? SwizzledPieceOffset(row_bytes, slice_row, piece)
                                     : slice_row * row_bytes + piece * kPieceBytes;
      CopyAsync16(to + Swizzled(row + slice_row, piece, kKvRowBytes),
                  is_wanted ? from + offset : task.q, is_wanted);
    }
  }

  // Slices of which no row sees a key become zeros and are not read.
  ATTENTION_DEVICE void LoadTile(int tile, int stage) const {
    constexpr int kSlices = kTileKeys / kSliceKeys;
    const int row = warp % kSlices * kSliceKeys, share = warp / kSlices;
    const bool is_read = span.ContainsAny(tile + row, tile + row + kSliceKeys);
    const PageLayout& layout = task.layout;
    int token = 0;
    const char* head = is_read ? PageOf(task, item.kv_head, tile + row, &token) : task.q;
    LoadSlice(head + static_cast<std::int64_t>(token) * layout.key_row_bytes, layout.key_row_bytes,
              layout.has_swizzled_keys, is_read, stored_keys(stage), row, share);
    LoadSlice(
        head + layout.value_offset + static_cast<std::int64_t>(token) * layout.value_row_bytes,
        layout.value_row_bytes, layout.has_swizzled_values, is_read, stored_values(stage), row,
        share);
    if constexpr (kHasScales) {
#pragma unroll 1
      for (int row = ThreadIndex(); row < kTileKeys; row += kThreads) {
        float key_scale = 0.0f, value_scale = 0.0f;
        if (span.Contains(tile + row)) {
          int token = 0;
          const char* head = PageOf(task, item.kv_head, tile + row, &token);
          key_scale = reinterpret_cast<const float*>(head + task.layout.key_scale_offset)[token];
          value_scale =
              reinterpret_cast<const float*>(head + task.layout.value_scale_offset)[token];
        }
        key_scales(stage)[row] = key_scale;
        value_scales(stage)[row] = value_scale;
      }
    }
  }

  // Two quantized values, the first at 0 or 2, of the four in a word, as a pair.
  static ATTENTION_DEVICE std::uint32_t PairOfQuantized(std::uint32_t word, int first) {
    if constexpr (kKvType == DType::kFloat8E4M3) {
      return Float8PairToBFloat(PermuteBytes(word, 0, first == 0 ? 0x1404 : 0x3424));
    } else {
      const auto at = [word](int byte) {
        return static_cast<float>(static_cast<std::int8_t>(word >> (8 * byte)));
      };
      return PackPair<kType>(at(first), at(first + 1));
    }
  }

  // Quantized values as bfloat16, which holds them exactly; the scales are applied to scores and
  // weights.
  ATTENTION_DEVICE void ConvertTensor(const char* from, char* to) const {
    constexpr int kPieces = kKvRowBytes / 16;
    // Unrolled, its addresses and words would push the output out of the registers.
#pragma unroll 1
    for (int i = ThreadIndex(); i < kTileKeys * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const auto* in =
          reinterpret_cast<const std::uint32_t*>(from + Swizzled(row, piece, kKvRowBytes));
      for (int half = 0; half < 2; ++half) {
        auto* out =
            reinterpret_cast<std::uint32_t*>(to + Swizzled(row, 2 * piece + half, kRowBytes));
        for (int j = 0; j < 2; ++j) {
          const std::uint32_t word = in[2 * half + j];
          out[2 * j] = PairOfQuantized(word, 0);
          out[2 * j + 1] = PairOfQuantized(word, 2);
        }
      }
    }
  }

  // --- Scores ---

  ATTENTION_DEVICE void ComputeScores(int stage, float (&s)[kTileKeys / 8][4]) const {
#pragma unroll
    for (int block = 0; block < kTileKeys / 8; ++block) {
      for (int i = 0; i < 4; ++i) s[block][i] = 0.0f;
    }
#pragma unroll kStepUnroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      if (step * 16 >= task.head_dim_qk) break;  // what follows is zero
      std::uint32_t a[4];
      LoadMatrix4(a, queries() + Swizzled(warp * 16 + lane % 16, 2 * step + lane / 16, kRowBytes));
#pragma unroll
      for (int pair = 0; pair < kTileKeys / 16; ++pair) {
        const int row = pair * 16 + lane % 8 + lane / 16 * 8;
        std::uint32_t b[4];
        LoadMatrix4(b, keys(stage) + Swizzled(row, 2 * step + lane / 8 % 2, kRowBytes));
        Mma<kType>(s[2 * pair], a, b[0], b[1]);
        Mma<kType>(s[2 * pair + 1], a, b[2], b[3]);
      }
    }
  }

  // The key of a lane's element of a score fragment, counted from the tile's first.
  ATTENTION_DEVICE int KeyInTile(int block, int i) const {
    return block * 8 + lane % 4 * 2 + (i & 1);
  }

  ATTENTION_DEVICE void ModifyScores(int tile, int stage, bool is_masked,
                                     float (&s)[kTileKeys / 8][4]) const {
    cuda::ModifyScores(
        task, rows, is_masked, [&](int block, int i) { return tile + KeyInTile(block, i); },
        [&](int block, int i, float dot) { return Scaled(stage, block, i, dot); }, s);
  }

  ATTENTION_DEVICE float Scaled(int stage, int block, int i, float dot) const {
    if constexpr (kHasScales) dot *= key_scales(stage)[KeyInTile(block, i)];
    return dot * task.softmax_scale;
  }

  // --- Values ---

  ATTENTION_DEVICE bool HasNonFiniteValues(int stage) const {
    bool has_non_finite = false;
    const auto* words = reinterpret_cast<const std::uint32_t*>(values(stage));
    for (int i = ThreadIndex(); i < kTensorBytes / 4; i += kThreads) {
      has_non_finite |= IsPairNonFinite<kType>(words[i]);
    }
    return has_non_finite;
  }

  ATTENTION_DEVICE void AddNonFiniteValues(int stage, const float (&s)[kTileKeys / 8][4]) {
    const auto pair_of = [&](int key, int block) {
      return *reinterpret_cast<const std::uint32_t*>(
          values(stage) + Swizzled(key, block, kRowBytes) + lane % 4 * 4);
    };
    cuda::AddNonFiniteValues<kType>(FindSeenKeys(s, 0), FindSeenKeys(s, 1), pair_of, o);
  }

  ATTENTION_DEVICE void ClearNonFiniteValues(int stage) const {
    auto* words = reinterpret_cast<std::uint32_t*>(values(stage));
    for (int i = ThreadIndex(); i < kTensorBytes / 4; i += kThreads) {
      if (IsPairNonFinite<kType>(words[i])) words[i] = ClearedPair<kType>(words[i]);
    }
  }

  // A weight with its value's scale. A weight of zero stays zero beside a scale that is NaN.
  ATTENTION_DEVICE float Weight(int stage, int block, int i, float p) const {
    if constexpr (kHasScales) {
      return p == 0.0f ? 0.0f : p * value_scales(stage)[KeyInTile(block, i)];
    }
    return p;
  }

  ATTENTION_DEVICE void AddValues(int stage, const float (&p)[kTileKeys / 8][4]) {
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) {
      std::uint32_t a[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int block = 2 * step + j / 2, i = 2 * (j % 2);
        a[j] = PackPair<kType>(Weight(stage, block, i, p[block][i]),
                               Weight(stage, block, i + 1, p[block][i + 1]));
      }
      const int row = step * 16 + lane % 16;
#pragma unroll
      for (int pair = 0; pair < kHeadDim / 16; ++pair) {
        if (pair * 16 >= task.head_dim_v) break;
        std::uint32_t b[4];
        LoadMatrix4Transposed(b, values(stage) + Swizzled(row, 2 * pair + lane / 16, kRowBytes));
        Mma<kType>(o[2 * pair], a, b[0], b[1]);
        Mma<kType>(o[2 * pair + 1], a, b[2], b[3]);
      }
    }
  }

  // --- The loop ---

  ATTENTION_DEVICE void ComputeTile(int tile, int stage) {
    if constexpr (kHasScales) {
      ConvertTensor(stored_keys(stage), keys(stage));
      ConvertTensor(stored_values(stage), values(stage));
      SyncThreads();
    }
    const bool is_masked = span.IsMasked(tile);
    // A weight of zero times a value that is not finite would be NaN. Quantized values are finite.
    const bool has_non_finite =
        !kHasScales && is_masked && SyncThreadsOr(HasNonFiniteValues(stage));
    float s[kTileKeys / 8][4];
    if (IsActive()) {
      ComputeScores(stage, s);
      ModifyScores(tile, stage, is_masked, s);
      float factor[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        factor[half] = RaiseMaximum(s, half, kLog2E, max[half], sum[half]);
      }
      if (IsAnyScaled(factor[0], factor[1])) {
        ScaleRow(o, 0, factor[0]);
        ScaleRow(o, 1, factor[1]);
      }
      if (has_non_finite) AddNonFiniteValues(stage, s);
      Exponentiate(s, kLog2E, max, sum);
    }
    if (has_non_finite) {
      SyncThreads();
      ClearNonFiniteValues(stage);
      SyncThreads();
    }
    if (IsActive()) AddValues(stage, s);
  }

  ATTENTION_DEVICE void ComputeTiles() {
    int tile = span.first_tile();
    const int end = span.end_tile();
    LoadQueries();
    if (tile < end) LoadTile(tile, 0);
    CommitCopies();
    for (int stage = 0; tile < end; stage ^= 1) {
      const int next = span.next_tile(tile);
      if (next < end) LoadTile(next, stage ^ 1);
      CommitCopies();
      WaitCopies<1>();
      SyncThreads();
      ComputeTile(tile, stage);
      SyncThreads();
      tile = next;
    }
    WaitCopies<0>();
    SyncThreads();
  }

  ATTENTION_DEVICE void StoreParts(const Parts& parts) {
    if (!IsActive()) return;
    for (int half = 0; half < 2; ++half) {
      const int row = warp * 16 + lane / 4 + 8 * half;
      const float total = SumOfLanes(sum[half]);
      if (lane % 4 == 0) {
        parts.max(0, row) = max[half];
        parts.sum(0, row) = total;
      }
#pragma unroll
      for (int block = 0; block < kHeadDim / 8; ++block) {
        float* out = parts.o(0, row) + block * 8 + lane % 4 * 2;
        out[0] = o[block][2 * half];
        out[1] = o[block][2 * half + 1];
      }
    }
  }

  static ATTENTION_DEVICE void Run(const AttendArguments& arguments, char* shared) {
    const WorkItem& item = arguments.items[BlockIndex()];
    const DeviceTask& task = arguments.tasks[item.task];
    AttendMma block(task, item, shared);
    block.ComputeTiles();
    const Parts parts{reinterpret_cast<float*>(shared)};
    block.StoreParts(parts);
    SyncThreads();
    FinishTile<kThreads>(arguments, task, item, parts, ThreadIndex(), SyncThreads);
  }
};

}  // namespace attention::cuda
