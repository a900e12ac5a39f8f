// The contract of planner and kernels: plain structs, and a table of functions
// that is chosen once, at start, for the processor's instruction set.
//
// Words: a *row* is one query of one head. The rows of a KV head are numbered
// query * group_size + (head within the group), so the query heads that share keys share their
// reads. A *row block* is what one micro-kernel call holds in registers, a *tile* the rows of one
// work item, a *range* 512 consecutive keys that start at a multiple of 512; 256 of wide heads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/api/attention_params.h"
#include "kernels/cpu/ahead.h"
#include "kernels/cpu/packed_layout.h"

namespace attention::cpu {

// 12 rows x 2 vectors = 24 accumulators, 2 key vectors and one broadcast: 27 of AVX-512's 32
// registers. Fourteen 64-byte-per-cycle loads feed 24 multiply-adds, so two load ports keep two FMA
// ports busy. AVX2 has 16 registers and takes the 12 rows as two sixes.
inline constexpr int kRowBlock = 12;
// A row block's scores of one range are 12 x 512 floats = 24 KiB: they stay in a 32 KiB L1 cache
// while 8 KiB key blocks stream through. Ranges also anchor the order of summation, so this number
// is part of the bits of every result.
inline constexpr int kRangeTokens = 512;
inline constexpr int kRangeBlocks = kRangeTokens / kBlockTokens;
// A range of 512 keys and values with these dims together is 1.1 MiB of float32, and the next one
// comes in beside it: more would leave an L2 cache of 2 MiB before the last of the tile's row
// blocks has read it. Heads of more have ranges of half as many keys, whichever keys they store.
inline constexpr int kMaxLongRangeDims = 576;
inline int RangeTokensOf(const PackedLayout& layout) {
  return layout.dim_qk + layout.dim_v <= kMaxLongRangeDims ? kRangeTokens : kRangeTokens / 2;
}
// 33 cache lines: consecutive rows fall into different sets.
inline constexpr int kScoreStride = kRangeTokens + 16;
// One range of keys and values with 128 dims each is 512 KiB of float32, and at most 1.1 MiB
// (above); 96 rows share it in L2.
inline constexpr int kTileBlocks = 8;
inline constexpr int kTileRows = kTileBlocks * kRowBlock;
inline constexpr int kStateLanes = 16;  // kRowBlock rounded up to whole vectors

// One task as planned. Contiguous keys and values were packed into one page as long as the
// sequence.
struct PlannedTask {
  AttentionTask task;
  PackedLayout layout;
  int range_tokens = kRangeTokens;
  void* const* pages = nullptr;
  // [q_len, num_q_heads, 2], scratch: the maximum of a row's scores and what makes weights of
  // powers of 2 relative to it. Null if nobody needs them.
  float* totals = nullptr;
  // Weights are powers of 2 of (score - maximum) * exponent_scale, which takes along softmax_scale
  // and the change of base: one multiply-add for most rows (softmax-inl.h). Where a soft cap, ALiBi
  // or a bias comes between, or the scale is not positive, scores are multiplied by softmax_scale
  // first and exponent_scale is log2(e).
  bool has_modifiers = false;
  float exponent_scale = 0;

  // Makes scores of what the kernels take for them.
  float score_scale() const { return has_modifiers ? 1.0f : task.params.softmax_scale; }
};

// Rows [row_begin, row_end) of a task, in a tile of several tasks.
struct JoinedRows {
  const PlannedTask* planned = nullptr;
  std::int64_t row_begin = 0;
  std::int64_t row_end = 0;
};

// Rows [row_begin, row_end) of a tile over the ranges [range_begin, range_end), whose pages their
// tasks have in common.
struct Stretch {
  const PlannedTask* planned = nullptr;  // one of the tasks, whose page table is read
  int row_begin = 0;
  int row_end = 0;
  std::int64_t range_begin = 0;
  std::int64_t range_end = 0;
};

// A tile of rows of tasks whose page tables begin with the same pages. Those of a row lie in
// ascending order of ranges, and together cover all ranges of the tile.
struct JoinedTile {
  std::vector<JoinedRows> rows;
  std::vector<Stretch> stretches;
};

// Rows [row_begin, row_end) of one KV head over the ranges [range_begin, range_end).
struct WorkItem {
  int task = 0;  // of joined rows: the first one
  int kv_head = 0;
  std::int64_t row_begin = 0;
  std::int64_t row_end = 0;
  std::int64_t range_begin = 0;
  std::int64_t range_end = 0;
  // Where this item leaves its unmerged partial results, in floats; negative: it sees all ranges
  // of its rows and finishes them.
  std::int64_t partial_offset = -1;
  double cost = 0;
  double group_cost = 0;  // the largest cost among the items of this task and KV head
  // Whose the rows are, if they are not all the task's; rows are numbered within the tile then.
  const JoinedTile* joined = nullptr;
};

inline int NumRowBlocks(const WorkItem& item) {
  return static_cast<int>(CeilDiv<std::int64_t>(item.row_end - item.row_begin, kRowBlock));
}

// A partial result: for one range and row, the largest score, the sum of powers and the
// unnormalised output [padded_dim_v]. Items store [ranges][rows] of them.
inline std::int64_t PartialFloats(const PackedLayout& layout) { return 2 + layout.padded_dim_v; }

// The keys that one query's row sees, see VisibleKeys.
struct RowSpan {
  const PlannedTask* planned = nullptr;  // whose row it is; its pages may be another's
  std::int64_t query = 0;
  int q_head = 0;
  VisibleKeys keys;
};

// The unnormalised result of a row block over some keys: for each row the largest score, the sum of
// powers relative to it (softmax-inl.h), and the values weighted with those.
struct alignas(64) RangeState {
  float* o = nullptr;  // [row][padded_dim_v], in the tile's memory
  alignas(64) float max[kStateLanes];
  float sum[kStateLanes];
};

// The value blocks of one range. Tokens of the last block at or past last_tokens are not read.
struct ValueBlocks {
  const void* const* blocks = nullptr;
  int num_blocks = 0;
  int last_tokens = 0;
  int padded_dim_v = 0;

  int TokensOf(int block) const { return block + 1 == num_blocks ? last_tokens : kBlockTokens; }
};

// Asks the threads of one call of Run to stop. They look before each unit of work, of which the
// longest are a row block over a range (12 x 512 scores: 40 us at 80 GFLOP/s and 128 + 128 dims,
// at most 90 us, with 320 + 256) and the packing of kPackTokens tokens of a head. Thread-safe.
class YieldSignal {
 public:
  // Null: never.
  explicit YieldSignal(const std::atomic<bool>* flag) : flag_(flag) {}

  // Not before some thread has done a unit, so that a flag that stays set does not stall a plan.
  bool IsSet() const {
    return flag_ != nullptr && flag_->load(std::memory_order_relaxed) &&
           has_progressed_.load(std::memory_order_relaxed);
  }

  // After each unit.
  void CountUnit() {
    if (flag_ == nullptr || has_progressed_.load(std::memory_order_relaxed)) return;
    has_progressed_.store(true, std::memory_order_relaxed);
  }

 private:
  const std::atomic<bool>* flag_;
  std::atomic<bool> has_progressed_{false};
};

// How far an item has come when its run yields. The rest that it needs to go on stays in the
// scratch.
struct ItemProgress {
  bool is_begun = false;
  std::size_t stretch = 0;  // the present one
  std::int64_t range = -1;  // the present one; negative: the stretch has not begun
  std::int64_t row = 0;     // of column sums: the first of the present tile
  int row_block = 0;        // the next one, counted from the first of the stretch
  // Bit i of [block]: row i of running[block] holds something.
  std::uint16_t merged_rows[kTileBlocks] = {};
};

// The sizes of what a tile keeps beside its scratch: its queries and results, as wide as the widest
// heads of a plan, so that those of 64 dims lie as close as if there were no wider ones.
struct TileMemory {
  std::size_t query_bytes = 0;   // of a row block: [dim][12 rows]
  std::size_t output_bytes = 0;  // of a RangeState
  std::size_t value_bytes = 0;   // values of a range that are taken from its keys

  void Include(const PlannedTask& planned) {
    const PackedLayout& layout = planned.layout;
    // Queries are transposed by fours of dims. 128 bytes between results move them to other sets.
    const std::size_t queries = (layout.dim_qk + 4) * kRowBlock * sizeof(float);
    const std::size_t outputs = layout.padded_dim_v * kRowBlock * sizeof(float) + 2 * kCacheLine;
    query_bytes = std::max(query_bytes, RoundUp<std::size_t>(queries, kCacheLine));
    output_bytes = std::max(output_bytes, RoundUp<std::size_t>(outputs, kCacheLine));
    if (!layout.is_latent) return;
    const std::size_t blocks = planned.range_tokens / kBlockTokens;
    value_bytes = std::max(value_bytes, blocks * layout.value_block_bytes);
  }

  std::size_t bytes() const {
    return kTileBlocks * query_bytes + (kTileBlocks + 1) * output_bytes + value_bytes;
  }
};

// Scratch of one thread's share of a run. Arrays are [row block][...] where not said otherwise.
struct alignas(64) TileScratch {
  float scores[kRowBlock * kScoreStride];          // [row][key], later weights
  float* q[kTileBlocks];                           // [dim][12 rows]
  RangeState running[kTileBlocks];                 // merged over the ranges so far
  RangeState range;                                // of the current range
  std::uint16_t visible[kRowBlock][kRangeBlocks];  // bit t: the row uses token t of the block
  std::uint32_t masked[kRowBlock];                 // entries of the range with masked keys
  std::uint8_t value_state[kRangeBlocks];          // ValueState of the blocks of the range
  // Value blocks of a latent cache, by their place in the range, and bits of those that are there.
  char* values = nullptr;
  std::uint32_t unpacked_values = 0;
  RowSpan rows[kTileRows];
  AheadList ahead;
  ItemProgress progress;
  double flops = 0;  // done in this run, keys counted by whole blocks

  // `memory` has sizes.bytes(), aligned to a cache line.
  void Bind(const TileMemory& sizes, char* memory) {
    const auto take = [&memory](std::size_t bytes) {
      return std::exchange(memory, memory + bytes);
    };
    for (float*& queries : q) queries = reinterpret_cast<float*>(take(sizes.query_bytes));
    for (RangeState& state : running) state.o = reinterpret_cast<float*>(take(sizes.output_bytes));
    range.o = reinterpret_cast<float*>(take(sizes.output_bytes));
    values = take(sizes.value_bytes);
  }
};

// The distance that an item of one row block keeps ahead (ahead.h). A micro-tile of one row walks
// down the dims of eight key blocks at once, and would come to the eighth of wide heads before the
// list does.
inline std::size_t AheadBytesOf(const PackedLayout& layout) {
  return layout.dim_qk <= 256 ? kAheadBytes : std::max(kAheadBytes, 8 * layout.key_block_bytes);
}

// The item that a thread will compute after the present one; null: none that it knows of.
struct NextItem {
  const PlannedTask* task = nullptr;
  const WorkItem* item = nullptr;
  const KvAppendTask* append = nullptr;  // keys and values are packed first; null: they are
  bool is_listed = false;                // TileScratch::ahead holds what is next already
};

// The kernels for one element type of keys and values. Those that take a signal return whether the
// item is done; if not, they are to be called again with the same arguments and scratch.
struct AttentionKernels {
  // Computes an item: finished rows or partial results. `next` is only prefetched.
  bool (*attend)(const PlannedTask& task, const WorkItem& item, const NextItem& next,
                 YieldSignal& yield, TileScratch& scratch, float* partials) = nullptr;
  // Merges the partial results of one row block, ranges in ascending order, and finishes its rows.
  // `item` spans all ranges.
  bool (*merge)(const PlannedTask& task, const WorkItem& item, int row_block, YieldSignal& yield,
                TileScratch& scratch, const float* partials) = nullptr;
  // Writes the weights of the item's rows to weights [q_end - q_begin, num_q_heads, kv_len].
  void (*weights)(const PlannedTask& task, const WorkItem& item, TileScratch& scratch,
                  std::int64_t q_begin, float* weights) = nullptr;
  // Sums weights over all rows into task.column_sums, for the item's KV head and ranges.
  bool (*column_sums)(const PlannedTask& task, const WorkItem& item, YieldSignal& yield,
                      TileScratch& scratch, double* sums /* [group_size][512] */) = nullptr;
};

struct KernelTable {
  const char* isa = "";
  AttentionKernels attention[5];  // by DType of keys and values
  // Keys, values and queries of bfloat16, by the dot product instruction; null without one.
  AttentionKernels bfloat16_dot;
  // Packs tokens [token_begin, token_end) of one KV head. is_prefetched: their rows are in the
  // cache.
  void (*pack)(const KvAppendTask& task, const PackedLayout& layout, int kv_head,
               std::int64_t token_begin, std::int64_t token_end, bool is_prefetched);
  // y[i] = 2^x[i], as the kernels compute it.
  void (*exp2)(const float* x, float* y, std::size_t count);
  // Runs `iterations` rounds of independent multiply-adds and returns their FLOP count.
  double (*multiply_add_loop)(std::int64_t iterations, float* sink);
  // Reads `bytes` (a multiple of 1024) and returns something that depends on them.
  float (*read_loop)(const void* data, std::size_t bytes);
};

// The best table for this processor or, with a Highway target bit, for that target. Null when the
// processor or the build lacks the target. Thread-safe.
const KernelTable* ChooseKernels(std::int64_t highway_target = 0);

}  // namespace attention::cpu
