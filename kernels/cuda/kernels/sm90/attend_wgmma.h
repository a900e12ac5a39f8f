// Prefill on compute capability 9.0: queries, outputs and cache of one 16-bit type, head dims of
// 64, 128 or 256, on the matrix instructions of warpgroups. README.md has the derivation and the
// picture.
//
// A block is persistent: it takes items, the most expensive first, until none is left. An item is a
// tile of 128 rows of one KV head over all its keys. Two warpgroups compute 64 rows each; the third
// one loads (load_warps.h). The two take turns at the matrix units (FlashAttention-3, Shah et al.
// 2024): while one multiplies, the other computes its softmax. Within a warpgroup the scores of a
// tile are multiplied together with the values of the tile before, whose product is waited for only
// after the softmax. Weights stay in registers, rounded to the type.
//
// Masks, maxima, sums and their order are those of AttendMma (common/): a row's result is a chain
// over its tiles of keys in ascending order.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/finish_tile.h"
#include "kernels/cuda/kernels/common/online_softmax.h"
#include "kernels/cuda/kernels/sm90/load_warps.h"
#include "kernels/cuda/kernels/sm90/operand.h"

namespace attention::cuda {

// Ids of named barriers.
inline constexpr int kTurnBarrier = 1;   // and 2: each warpgroup's turn
inline constexpr int kGroupBarrier = 3;  // and 4: among the threads of each

template <DType kType, typename Sizes>
struct Consumer {
  using Pipes = Pipeline<Sizes>;
  using Span = KeySpan<Sizes::kTileKeys>;
  using Operand = TileOperand<Sizes::kRowBytes>;
  static constexpr int kHeadDim = Sizes::kHeadDim;
  static constexpr int kKeyBlocks = Sizes::kTileKeys / 8;
  static constexpr int kKeySteps = Sizes::kTileKeys / 16;

  const AttendArguments& arguments;
  Pipes pipes;
  int group;  // 0 or 1
  Ring<Pipes::kItemStages> items;
  Ring<Sizes::kStages> key_ring, value_ring;

  // The present item's.
  const DeviceTask* task;
  const WorkItem* item;
  Span span;
  RowKeys keys[2];    // of the lane's rows g and g + 8
  bool is_folded;     // scores stay dot products; their scale is part of `unit`
  bool has_own_keys;  // nothing but limits says what a row sees
  float unit;         // log2(e) times what turns s into scores

  float s[kKeyBlocks][4];
  std::uint32_t weights[kKeySteps][4];  // in the fragments of A
  float o[kHeadDim / 8][4];
  float max[2];
  float sum[2];  // of the lane's columns

  ATTENTION_DEVICE Consumer(const AttendArguments& block_arguments, const Pipes& block_pipes,
                            int consumer)
      : arguments(block_arguments), pipes(block_pipes), group(consumer) {}

  // Within the warpgroup. Values that follow from it are computed where they are used: kept, they
  // would push the tiles out of the registers.
  static ATTENTION_DEVICE int thread() {
    return static_cast<int>(Computed(ThreadIndex() % Sizes::kGroupThreads));
  }
  ATTENTION_DEVICE int first_row() const {
    const int index = thread();
    return group * Sizes::kGroupRows + index / 32 * 16 + index % 32 / 4;
  }

  ATTENTION_DEVICE ScoreRow RowOf(int half) const {
    const PackedRow row(*task, *item, Min(item->num_rows - 1, first_row() + 8 * half));
    return ScoreRowAt(*task, row.query, item->kv_head * task->group + row.head);
  }

  // --- Items ---

  // Sends for the warpgroup's rows of queries; those past the end become zeros.
  ATTENTION_DEVICE void LoadQueries(const DeviceTask& from, const WorkItem& of) const {
    constexpr int kPieces = Sizes::kRowBytes / kPieceBytes;
    char* queries = pipes.queries(group);
#pragma unroll 4
    for (int i = thread(); i < Sizes::kGroupRows * kPieces; i += Sizes::kGroupThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool is_wanted = group * Sizes::kGroupRows + row < of.num_rows;
      const PackedRow packed(from, of, group * Sizes::kGroupRows + row);
      const std::int64_t index = packed.IndexIn(from, of);
      CopyAsync16(queries + SwizzledPieceOffset(Sizes::kRowBytes, row, piece),
                  is_wanted ? from.q + index * Sizes::kRowBytes + piece * kPieceBytes : from.q,
                  is_wanted);
    }
  }

  // After the last product with the queries of the item before.
  ATTENTION_DEVICE int FetchItem() {
    const int index = pipes.ReadItem(items);
    SyncNamed(kGroupBarrier + group, Sizes::kGroupThreads);
    if (index < arguments.num_items) {
      const WorkItem& next = arguments.items[index];
      LoadQueries(arguments.tasks[next.task], next);
    }
    CommitCopies();
    return index;
  }

  ATTENTION_DEVICE void BeginItem(int index) {
    item = &arguments.items[index];
    task = &arguments.tasks[item->task];
    span = SpanOfItem<Sizes::kTileKeys>(*task, *item);
    is_folded = !HasModifiers(*task) && task->softmax_scale > 0.0f;
    has_own_keys = is_folded && task->mask == nullptr;
    unit = is_folded ? task->softmax_scale * kLog2E : kLog2E;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      keys[half] = RowOf(half).keys;
      max[half] = MinusInfinity();
      sum[half] = 0.0f;
    }
#pragma unroll
    for (int block = 0; block < kHeadDim / 8; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[block][i] = 0.0f;
    }
    WaitCopies<0>();
    FenceAsyncProxy();
    SyncNamed(kGroupBarrier + group, Sizes::kGroupThreads);
  }

  // --- Turns at the matrix units ---

  ATTENTION_DEVICE void TakeTurn() const {
    SyncNamed(kTurnBarrier + group, Sizes::kConsumers * Sizes::kGroupThreads);
  }
  ATTENTION_DEVICE void PassTurn() const {
    ArriveNamed(kTurnBarrier + (group ^ 1), Sizes::kConsumers * Sizes::kGroupThreads);
  }

  // --- Products ---

  ATTENTION_DEVICE void MultiplyKeys() {
    const std::uint64_t q = Operand::KMajor(Computed(SharedAddress(pipes.queries(group))));
    const std::uint64_t k = Operand::KMajor(SharedAddress(pipes.keys(key_ring.stage)));
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int offset = Operand::KMajorStep(step);
      MultiplyShared<kType>(s, Advanced(q, offset), Advanced(k, offset), step > 0);
    }
  }

  ATTENTION_DEVICE void MultiplyValues() {
    constexpr int kCount = Min(kHeadDim / 8, 16);  // blocks of one instruction
    const std::uint32_t tile = SharedAddress(pipes.values(value_ring.stage));
    const std::uint64_t low = Operand::MnMajor(tile, 0);
#pragma unroll
    for (int step = 0; step < kKeySteps; ++step) {
      const int offset = Operand::MnMajorStep(step);
      MultiplyRegisters<kType, 0, kCount>(o, weights[step], Advanced(low, offset));
      if constexpr (kHeadDim == 256) {
        const std::uint64_t high = Operand::MnMajor(tile, 128);
        MultiplyRegisters<kType, kCount, kCount>(o, weights[step], Advanced(high, offset));
      }
    }
  }

  ATTENTION_DEVICE void WaitForKeys() const {
    WaitForBarrier(&pipes.words().key_full[key_ring.stage], key_ring.parity);
  }
  // A warp sees the bytes of bulk copies after it waited for them, and what the checkers cleared
  // after it waited for these.
  ATTENTION_DEVICE void WaitForValues(const Ring<Sizes::kStages>& ring) const {
    WaitForBarrier(&pipes.words().value_full[ring.stage], ring.parity);
    WaitForBarrier(&pipes.words().value_clean[ring.stage], ring.parity);
  }
  ATTENTION_DEVICE void ReleaseKeys() {
    Pipes::ArriveOncePerWarp(&pipes.words().key_empty[key_ring.stage]);
    key_ring.Advance();
  }
  ATTENTION_DEVICE void ReleaseValues() {
    Pipes::ArriveOncePerWarp(&pipes.words().value_empty[value_ring.stage]);
    value_ring.Advance();
  }

  // --- Softmax ---

  ATTENTION_DEVICE int KeyOf(int tile, int block, int i) const {
    return tile + block * 8 + LaneIndex() % 4 * 2 + (i & 1);
  }

  // As Contains of key_span.h, in two comparisons and without a branch.
  ATTENTION_DEVICE bool IsSeen(const RowKeys& row, int key) const {
    const auto is_in = [key](int begin, int end) {
      return static_cast<unsigned>(key - begin) < static_cast<unsigned>(end - begin);
    };
    return is_in(row.begin, row.end) | is_in(span.kv_begin, row.sink_end);
  }

  ATTENTION_DEVICE void MaskScores(int tile, bool is_masked) {
    if (is_folded && !is_masked) return;
    if (has_own_keys) {
#pragma unroll
      for (int block = 0; block < kKeyBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (!IsSeen(keys[i / 2], KeyOf(tile, block, i))) s[block][i] = MinusInfinity();
        }
      }
      return;
    }
    const float scale = is_folded ? 1.0f : task->softmax_scale;
    const ScoreRow rows[2] = {RowOf(0), RowOf(1)};
    ModifyScores(
        *task, rows, is_masked, [&](int block, int i) { return KeyOf(tile, block, i); },
        [&](int, int, float dot) { return dot * scale; }, s);
  }

  // True if the tile that `ring` names has values that the checkers cleared though a row sees them.
  ATTENTION_DEVICE bool HasNonFiniteValues(const Ring<Sizes::kStages>& ring) const {
    WaitForValues(ring);
    std::uint32_t has_non_finite = 0;
#pragma unroll
    for (int checker = 0; checker < Sizes::kCheckers; ++checker) {
      has_non_finite |= pipes.words().has_non_finite[ring.stage][checker];
    }
    return has_non_finite != 0;
  }

  ATTENTION_DEVICE void AddNonFinite(int tile, const SeenKeys<Sizes::kTileKeys> (&seen)[2]) {
    const auto pair_of = [&](int key, int block) {
      int token = 0;
      const char* head = PageOf(*task, item->kv_head, tile + key, &token);
      return *reinterpret_cast<const std::uint32_t*>(head + task->layout.value_piece(token, block) +
                                                     LaneIndex() % 4 * 4);
    };
    AddNonFiniteValues<kType>(seen[0], seen[1], pair_of, o);
  }

  ATTENTION_DEVICE void PackWeights() {
#pragma unroll
    for (int step = 0; step < kKeySteps; ++step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int block = 2 * step + j / 2, i = 2 * (j % 2);
        weights[step][j] = PackPair<kType>(s[block][i], s[block][i + 1]);
      }
    }
  }

  // Scores become weights. In the meantime the products that were committed before go on; when they
  // are over, `ring` has moved on to the tile's values, and o is scaled to the new maximum.
  template <bool kIsFirst>
  ATTENTION_DEVICE void WeighTile(int tile, bool has_next) {
    const bool is_masked = span.IsMasked(tile);
    MaskScores(tile, is_masked);
    Ring<Sizes::kStages> ring = value_ring;
    if constexpr (!kIsFirst) ring.Advance();
    // A weight of zero times a value that is not finite would be NaN, so these are added by hand.
    // Such values are not known until they have come, so the keys that each row sees are kept.
    // (Waiting for them here took a seventh of prefill of 2k.)
    SeenKeys<Sizes::kTileKeys> seen[2] = {};
    if (is_masked) {
      seen[0] = FindSeenKeys(s, 0);
      seen[1] = FindSeenKeys(s, 1);
    }
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factor[half] = RaiseMaximum(s, half, unit, max[half], sum[half]);
    }
    Exponentiate(s, unit, max, sum);
    if constexpr (kIsFirst) {
      if (has_next) WaitForKeys();
    } else {
      // Here, not at the next tile's begin: ptxas would move the exponentials behind the products'
      // wait, but not past a loop.
      PinRegisters(s);
      if (has_next) WaitForKeys();
      WaitWgmma<0>();
      PinRegisters(o);
      ReleaseValues();
      if (IsAnyScaled(factor[0], factor[1])) {
        ScaleRow(o, 0, factor[0]);
        ScaleRow(o, 1, factor[1]);
      }
    }
    if (is_masked && HasNonFiniteValues(ring)) AddNonFinite(tile, seen);
    PackWeights();
  }

  // --- The loop ---

  ATTENTION_DEVICE void PinOperands() {
    PinRegisters(o);
    PinRegisters(weights);
    FenceWgmma();
  }

  ATTENTION_DEVICE void ComputeFirstTile(int tile, bool has_next) {
    WaitForKeys();
    TakeTurn();
    FenceWgmma();
    MultiplyKeys();
    CommitWgmma();
    PassTurn();
    WaitWgmma<0>();
    PinRegisters(s);
    ReleaseKeys();
    WeighTile</*kIsFirst=*/true>(tile, has_next);
  }

  ATTENTION_DEVICE void ComputeTile(int tile, bool has_next) {
    WaitForValues(value_ring);
    TakeTurn();
    PinOperands();
    MultiplyKeys();
    CommitWgmma();
    MultiplyValues();
    CommitWgmma();
    PassTurn();
    WaitWgmma<1>();
    PinRegisters(s);
    ReleaseKeys();
    WeighTile</*kIsFirst=*/false>(tile, has_next);
  }

  ATTENTION_DEVICE void ComputeLastValues() {
    WaitForValues(value_ring);
    PinOperands();
    MultiplyValues();
    CommitWgmma();
    WaitWgmma<0>();
    PinRegisters(o);
    ReleaseValues();
  }

  // The result is the block's next item.
  ATTENTION_DEVICE int ComputeItem(int index) {
    BeginItem(index);
    const int end = span.end_tile();
    int tile = span.first_tile();
    const bool has_tiles = tile < end;
    if (has_tiles) {
      int next = span.next_tile(tile);
      ComputeFirstTile(tile, next < end);
      while (next < end) {
        tile = next;
        next = span.next_tile(tile);
        ComputeTile(tile, next < end);
      }
    }
    const int following = FetchItem();
    if (has_tiles) ComputeLastValues();
    WriteRows();
    return following;
  }

  // --- Outputs ---

  // The four lanes of a row have two channels of each block of 8; after this lane t has block t.
  static ATTENTION_DEVICE void TransposeQuad(std::uint32_t (&words)[4]) {
    const int lane = LaneIndex() % 4;
#pragma unroll
    for (int mask = 1; mask <= 2; mask *= 2) {
#pragma unroll
      for (int low = 0; low < 4; ++low) {
        if ((low & mask) != 0) continue;
        const bool keeps_high = (lane & mask) != 0;
        const std::uint32_t sent = keeps_high ? words[low] : words[low | mask];
        const std::uint32_t received = ShuffleXor(sent, mask);
        words[low] = keeps_high ? received : words[low];
        words[low | mask] = keeps_high ? words[low | mask] : received;
      }
    }
  }

  ATTENTION_DEVICE void WriteRows() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row() + 8 * half;
      const bool exists = row < item->num_rows;
      const float scale = is_folded ? task->softmax_scale : 1.0f;
      const PackedRow packed(*task, *item, Min(row, item->num_rows - 1));
      const RowWriter writer(*task, packed.query, item->kv_head * task->group + packed.head,
                             {max[half] * scale, SumOfLanes(sum[half])});
      if (exists && LaneIndex() % 4 == 0) writer.WriteLse();
      // No denominator is less than 1 but that of nothing.
      const float reciprocal = writer.sum == 0.0f ? 0.0f : writer.factor / writer.sum;
      char* out = static_cast<char*>(task->o) + writer.index * Sizes::kRowBytes;
#pragma unroll
      for (int first = 0; first < kHeadDim / 8; first += 4) {
        Words4 piece;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Adding zero makes both zeros one.
          piece.words[i] = PackPair<kType>(Fma(o[first + i][2 * half], reciprocal, 0.0f),
                                           Fma(o[first + i][2 * half + 1], reciprocal, 0.0f));
        }
        TransposeQuad(piece.words);
        if (!exists) continue;
        *reinterpret_cast<Words4*>(out + (first + LaneIndex() % 4) * kPieceBytes) = piece;
      }
    }
  }

  ATTENTION_DEVICE void Run() {
    if (group == 1) PassTurn();
    int index = FetchItem();
    while (index < arguments.num_items) index = ComputeItem(index);
    WaitCopies<0>();
    if (group == 0) TakeTurn();  // the one that is left
  }
};

template <DType kElementType, int kHeadDimension>
struct AttendWgmma {
  static constexpr DType kType = kElementType;
  using Sizes = WgmmaSizes<kHeadDimension>;
  using Pipes = Pipeline<Sizes>;
  static constexpr int kThreads = Sizes::kThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr int kSharedBytes = Pipes::kSharedBytes;
  using Arguments = AttendArguments;

  static ATTENTION_DEVICE void Run(const AttendArguments& arguments, char* shared) {
    const Pipes pipes{shared};
    if (ThreadIndex() == 0) pipes.Init();
    SyncThreads();
    const int warp = Uniform(ThreadIndex() / 32), group = warp / Sizes::kGroupWarps;
    if (group == 0) {
      LowerRegisters<Sizes::kLoadRegisters>();
      LoadWarps<kType, Sizes> warps{arguments, pipes, {}, {}, {}};
      if (warp == 0) {
        warps.Produce();
      } else {
        warps.Check(warp - 1);
      }
    } else {
      RaiseRegisters<Sizes::kConsumerRegisters>();
      Consumer<kType, Sizes>(arguments, pipes, group - 1).Run();
    }
  }
};

}  // namespace attention::cuda
