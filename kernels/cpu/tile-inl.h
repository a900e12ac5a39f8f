// Drives the micro-kernels over one work item: load the rows, walk the ranges in ascending order,
// merge, finish. Nothing here depends on how rows are grouped (docs/design/batch-invariance.md).
#if defined(ATTENTION_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_TILE_INL_H_
#undef ATTENTION_CPU_TILE_INL_H_
#else
#define ATTENTION_CPU_TILE_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "kernels/cpu/dot-inl.h"
#include "kernels/cpu/latent-inl.h"
#include "kernels/cpu/pv-inl.h"
#include "kernels/cpu/qk-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// Scores of a row block and range with all modifiers applied; invisible keys have -inf.
template <class Kv>
inline void ComputeScores(const PlannedTask& planned, const RowBlock& rows,
                          const RangeBlocks& blocks, TileScratch& scratch) {
  ForRowGroups(rows.rows, ScoreFunction<Kv>{
                              .q = scratch.q[rows.index] + rows.first,
                              .key_blocks = blocks.keys(),
                              .num_blocks = blocks.count,
                              .dim_qk = static_cast<std::size_t>(planned.layout.dim_qk),
                              .ahead = scratch.ahead,
                              .scores = scratch.scores,
                          });
  for (int row = 0; row < rows.rows; ++row) {
    scratch.masked[row] =
        ApplyModifiers(rows.spans[row], blocks, scratch.scores + row * kScoreStride);
  }
}

enum ValueState : std::uint8_t { kUnknown, kFinite, kNotFinite };

// True if the value block may be multiplied by the zero weights of masked keys.
template <class Kv>
inline bool IsSafeBlock(const PackedLayout& layout, const RangeBlocks& blocks, int entry,
                        TileScratch& scratch) {
  const bool is_last = entry + 1 == blocks.count;
  const int tokens = is_last ? blocks.last_tokens : kBlockTokens;
  std::uint8_t& state = scratch.value_state[blocks.index[entry]];
  if (tokens == kBlockTokens && state != kUnknown) return state == kFinite;
  const bool is_finite =
      IsFiniteBlock<Kv>(blocks.values()[entry], tokens, layout.padded_dim_v, layout.dim_v);
  if (tokens == kBlockTokens) state = is_finite ? kFinite : kNotFinite;
  return is_finite;
}

// Turns the row block's scores into weights and fills state's max and sum. Returns whether plain
// value sums are safe; scratch.visible is filled if not.
template <class Kv>
inline bool ComputeWeights(const PlannedTask& planned, const RowBlock& rows,
                           const RangeBlocks& blocks, TileScratch& scratch, RangeState* state) {
  const std::uint32_t all_entries = ~0u >> (kRangeBlocks - blocks.count);
  std::uint32_t masked_entries = 0;
  for (int row = 0; row < rows.rows; ++row) masked_entries |= scratch.masked[row] & all_entries;
  bool is_safe = true;
  for (std::uint32_t left = masked_entries; left != 0 && is_safe; left &= left - 1) {
    is_safe = IsSafeBlock<Kv>(planned.layout, blocks, std::countr_zero(left), scratch);
  }
  for (int row = 0; row < rows.rows; ++row) {
    float* scores = scratch.scores + row * kScoreStride;
    if (!is_safe) FindVisible(scores, blocks.count, scratch.visible[row]);
    state->max[row] = MaxScore(scores, blocks.count);
    state->sum[row] = Exponentiate(planned.exponent_scale, state->max[row], blocks.count, scores);
  }
  return is_safe;
}

// Fills `state` for a row block and range.
template <class Kv>
inline void AttendRange(const PlannedTask& planned, const RowBlock& rows, RangeBlocks& blocks,
                        TileScratch& scratch, RangeState* state) {
  ComputeScores<Kv>(planned, rows, blocks, scratch);
  if (planned.layout.is_latent) UnpackValues<Kv>(planned.layout, blocks, scratch);
  const bool is_safe = ComputeWeights<Kv>(planned, rows, blocks, scratch, state);
  const int padded_dim_v = planned.layout.padded_dim_v;
  const ValueBlocks values{blocks.values(), blocks.count, blocks.last_tokens, padded_dim_v};
  for (int row = 0; row < rows.rows; ++row) {
    PrepareWeights<Kv>(values, is_safe, scratch.scores + row * kScoreStride);
  }
  if (is_safe) {
    ForRowGroups(rows.rows,
                 ValueFunction<Kv>{
                     .p = scratch.scores, .values = values, .ahead = scratch.ahead, .o = state->o});
    return;
  }
  for (int row = 0; row < rows.rows; ++row) {
    SumVisibleValues<Kv>(scratch.scores + row * kScoreStride, scratch.visible[row], values,
                         state->o + row * padded_dim_v);
  }
}

// The state of rows that have seen nothing yet.
inline void ClearState(int padded_dim_v, RangeState* state) {
  std::fill_n(state->max, kStateLanes, kNegInf);
  std::fill_n(state->sum, kStateLanes, 0.0f);
  std::fill_n(state->o, kRowBlock * padded_dim_v, 0.0f);
}

// Merges a range's result into the rows' part of the running state; the other rows of the block
// keep theirs. Outputs of the range lie o_stride apart.
inline void MergeRange(const PlannedTask& planned, const RowBlock& rows, const float* max,
                       const float* sum, const float* range_o, std::int64_t o_stride,
                       RangeState* state) {
  const F32 d;
  const int padded_dim_v = planned.layout.padded_dim_v;
  alignas(64) float old_factor[kStateLanes];
  alignas(64) float range_factor[kStateLanes];
  alignas(64) float merged_max[kStateLanes] = {};
  alignas(64) float merged_sum[kStateLanes] = {};
  std::copy_n(state->max + rows.first, rows.rows, merged_max);
  std::copy_n(state->sum + rows.first, rows.rows, merged_sum);
  MergeFactors(planned.exponent_scale, max, sum, merged_max, merged_sum, old_factor, range_factor);
  std::copy_n(merged_max, rows.rows, state->max + rows.first);
  std::copy_n(merged_sum, rows.rows, state->sum + rows.first);
  for (int row = 0; row < rows.rows; ++row) {
    float* o = state->o + (rows.first + row) * padded_dim_v;
    const float* added = range_o + row * o_stride;
    const Vec alpha = hn::Set(d, old_factor[row]);
    const Vec beta = hn::Set(d, range_factor[row]);
    for (int channel = 0; channel < padded_dim_v; channel += kLanes) {
      const Vec scaled = hn::Mul(hn::Load(d, o + channel), alpha);
      hn::Store(hn::MulAdd(hn::LoadU(d, added + channel), beta, scaled), d, o + channel);
    }
  }
}

inline void FinishBlock(const PlannedTask& planned, const RowBlock& rows, RangeState* state) {
  for (int row = 0; row < rows.rows; ++row) {
    FinishRow(rows.spans[row], state->max[row], state->sum[row],
              state->o + row * planned.layout.padded_dim_v);
  }
}

// Stores a range's result as rows of (max, sum, o) for the merge of split items.
inline void StorePartial(const PlannedTask& planned, int rows, const RangeState& state,
                         float* partials) {
  const int padded_dim_v = planned.layout.padded_dim_v;
  for (int row = 0; row < rows; ++row) {
    float* out = partials + row * PartialFloats(planned.layout);
    out[0] = state.max[row];
    out[1] = state.sum[row];
    std::memcpy(out + 2, state.o + row * padded_dim_v, padded_dim_v * sizeof(float));
  }
}

// One row block and range of an item that sees all ranges of its rows.
template <class Kv>
inline void AttendWhole(const PlannedTask& planned, const RowBlock& rows, RangeBlocks& blocks,
                        bool is_joined, TileScratch& scratch) {
  RangeState* running = &scratch.running[rows.index];
  RangeState* range = &scratch.range;
  std::uint16_t& merged = scratch.progress.merged_rows[rows.index];
  const bool is_first = (merged & rows.bits()) == 0;
  merged |= rows.bits();
  // Merging into nothing gives the range's own bits, but for signs of zero: skip it.
  if (is_first && !is_joined) return AttendRange<Kv>(planned, rows, blocks, scratch, running);
  AttendRange<Kv>(planned, rows, blocks, scratch, range);
  const int padded_dim_v = planned.layout.padded_dim_v;
  if (!is_first) {
    return MergeRange(planned, rows, range->max, range->sum, range->o, padded_dim_v, running);
  }
  // Other rows of the block may hold something already.
  std::copy_n(range->max, rows.rows, running->max + rows.first);
  std::copy_n(range->sum, rows.rows, running->sum + rows.first);
  std::copy_n(range->o, rows.rows * padded_dim_v, running->o + rows.first * padded_dim_v);
}

// The stretches of an item, cut to its ranges: a single one if its rows are those of one task.
class ItemStretches {
 public:
  ItemStretches(const PlannedTask& planned, const WorkItem& item)
      : item_(item),
        whole_{&planned, 0, static_cast<int>(item.row_end - item.row_begin), item.range_begin,
               item.range_end} {}

  std::size_t size() const { return item_.joined == nullptr ? 1 : item_.joined->stretches.size(); }

  Stretch At(std::size_t index) const {
    if (item_.joined == nullptr) return whole_;
    Stretch stretch = item_.joined->stretches[index];
    stretch.range_begin = std::max(stretch.range_begin, item_.range_begin);
    stretch.range_end = std::min(stretch.range_end, item_.range_end);
    return stretch;
  }

  // The next one behind `index` that has ranges in the item. Others may be of tasks whose page
  // tables end before the item begins.
  std::optional<Stretch> After(std::size_t index) const {
    while (++index < size()) {
      const Stretch stretch = At(index);
      if (stretch.range_begin < stretch.range_end) return stretch;
    }
    return std::nullopt;
  }

 private:
  const WorkItem& item_;
  const Stretch whole_;
};

// The keys that the rows of a stretch see: their sinks, and from the oldest one's window on.
inline VisibleKeys KeysOfStretch(const Stretch& stretch, bool is_joined, const RowSpan* rows) {
  VisibleKeys keys{rows[stretch.row_begin].keys.begin, 0, 0};
  // Between the first and the last row of a task lie the spans of the others, but for a tree's.
  const bool is_every = is_joined || stretch.planned->task.tree.has_rows();
  const int step = is_every ? 1 : std::max(1, stretch.row_end - 1 - stretch.row_begin);
  for (int row = stretch.row_begin; row < stretch.row_end; row += step) {
    const VisibleKeys& seen = rows[row].keys;
    keys.begin = std::min(keys.begin, seen.begin);
    keys.end = std::max(keys.end, seen.end);
    keys.sink_end = std::max({keys.sink_end, rows[row].planned->task.kv_begin, seen.sink_end});
  }
  return keys;
}

// The next range that the rows of a stretch can see: the ones between the sinks and the window are
// left out.
inline std::int64_t NextRange(const PlannedTask& planned, const VisibleKeys& keys,
                              std::int64_t range) {
  ++range;
  if (range * planned.range_tokens < keys.sink_end) return range;
  return std::max(range, keys.begin / planned.range_tokens);
}

// Before a range: forgets what was known of its values, and lists what comes after it.
inline void BeginRange(const WorkItem& item, const NextItem& next, const ItemStretches& stretches,
                       const Stretch& stretch, std::int64_t next_range, TileScratch& scratch) {
  std::fill_n(scratch.value_state, kRangeBlocks, kUnknown);
  scratch.unpacked_values = 0;
  if (next.is_listed) return;
  const std::int64_t range = scratch.progress.range;
  AheadList& ahead = scratch.ahead;
  ahead.Clear(/*is_sparse=*/stretch.row_begin / kRowBlock != (stretch.row_end - 1) / kRowBlock);
  AddRangeRest(item, stretch, scratch.rows, range, ahead);
  if (next_range < stretch.range_end) {
    AddRangeStart(item, stretch, scratch.rows, next_range, ahead);
  } else if (const auto after = stretches.After(scratch.progress.stretch)) {
    AddRangeStart(item, *after, scratch.rows, after->range_begin, ahead);
  } else {
    if (item.partial_offset < 0) AddOutputs(stretch.planned->layout, item, scratch.rows, ahead);
    AddItem(next, *stretch.planned, item, range, ahead);
  }
}

// Counts a row block's work over some blocks of keys.
inline void CountWork(const PackedLayout& layout, int rows, const RangeBlocks& blocks,
                      YieldSignal& yield, TileScratch& scratch) {
  scratch.flops +=
      2.0 * rows * blocks.count * kBlockTokens * static_cast<double>(layout.dim_qk + layout.dim_v);
  yield.CountUnit();
}

// One row block and range of an item that shares its rows with others.
template <class Kv>
inline void AttendPart(const PlannedTask& planned, const WorkItem& item, const RowBlock& rows,
                       RangeBlocks& blocks, TileScratch& scratch, float* partials) {
  if (blocks.count > 0) {
    AttendRange<Kv>(planned, rows, blocks, scratch, &scratch.range);
  } else {
    ClearState(planned.layout.padded_dim_v, &scratch.range);
  }
  const std::int64_t rows_per_range = item.row_end - item.row_begin;
  const std::int64_t row = (scratch.progress.range - item.range_begin) * rows_per_range +
                           rows.index * kRowBlock + rows.first;
  StorePartial(planned, rows.rows, scratch.range,
               partials + item.partial_offset + row * PartialFloats(planned.layout));
}

// The rows of a stretch in its row block `block`.
inline RowBlock RowsOfStretch(const Stretch& stretch, const TileScratch& scratch, int block) {
  const int index = stretch.row_begin / kRowBlock + block;
  const int begin = std::max(stretch.row_begin, index * kRowBlock);
  const int end = std::min(stretch.row_end, (index + 1) * kRowBlock);
  return {index, end - begin, scratch.rows + begin, begin - index * kRowBlock};
}

// The rows of the present stretch over its ranges. Returns whether it is done.
template <class Kv>
bool AttendStretch(const WorkItem& item, const NextItem& next, const ItemStretches& stretches,
                   YieldSignal& yield, TileScratch& scratch, float* partials) {
  ItemProgress& progress = scratch.progress;
  Stretch stretch = stretches.At(progress.stretch);
  const PlannedTask& planned = *stretch.planned;
  const bool is_split = item.partial_offset >= 0;
  const bool is_joined = item.joined != nullptr;
  const VisibleKeys keys = KeysOfStretch(stretch, is_joined, scratch.rows);
  // Split items leave something for every row and range.
  if (is_joined && !is_split) {
    stretch.range_end =
        std::min(stretch.range_end, CeilDiv<std::int64_t>(keys.end, planned.range_tokens));
  }
  const int num_blocks = (stretch.row_end - 1) / kRowBlock - stretch.row_begin / kRowBlock + 1;
  if (progress.range < 0) progress.range = stretch.range_begin;
  while (progress.range < stretch.range_end) {
    const std::int64_t next_range =
        is_split ? progress.range + 1 : NextRange(planned, keys, progress.range);
    BeginRange(item, next, stretches, stretch, next_range, scratch);
    for (; progress.row_block < num_blocks; ++progress.row_block) {
      if (yield.IsSet()) return false;
      const RowBlock rows = RowsOfStretch(stretch, scratch, progress.row_block);
      RangeBlocks blocks;
      FindBlocks(planned, item.kv_head, rows, progress.range, &blocks);
      if (is_split) {
        AttendPart<Kv>(planned, item, rows, blocks, scratch, partials);
      } else if (blocks.count > 0) {
        AttendWhole<Kv>(planned, rows, blocks, is_joined, scratch);
      }
      if (blocks.count > 0) CountWork(planned.layout, rows.rows, blocks, yield, scratch);
    }
    progress.row_block = 0;
    progress.range = next_range;
  }
  progress.range = -1;
  return true;
}

template <class Kv>
bool Attend(const PlannedTask& planned, const WorkItem& item, const NextItem& next,
            YieldSignal& yield, TileScratch& scratch, float* partials) {
  ItemProgress& progress = scratch.progress;
  const int padded_dim_v = planned.layout.padded_dim_v;
  const bool is_split = item.partial_offset >= 0;
  const int num_blocks = NumRowBlocks(item);
  if (!progress.is_begun) {
    FindSpans(planned, item, scratch);
    if (item.range_begin < item.range_end) LoadQueries<Kv>(planned, item, scratch);
    for (int index = 0; index < num_blocks && item.joined != nullptr; ++index) {
      ClearState(padded_dim_v, &scratch.running[index]);
    }
    progress = {.is_begun = true};
  }
  const ItemStretches stretches(planned, item);
  for (; progress.stretch < stretches.size(); ++progress.stretch) {
    if (!AttendStretch<Kv>(item, next, stretches, yield, scratch, partials)) return false;
  }
  for (int index = 0; index < num_blocks && !is_split; ++index) {
    RangeState* running = &scratch.running[index];
    if (progress.merged_rows[index] == 0) ClearState(padded_dim_v, running);
    FinishBlock(planned, RowBlockOf(item, scratch, index), running);
  }
  progress.is_begun = false;
  return true;
}

// Ranges that are merged between two looks at the signal: 32 ranges of 12 rows of 128 channels are
// 200 KB, 20 us.
inline constexpr std::int64_t kMergeRanges = 32;

inline bool MergePartials(const PlannedTask& planned, const WorkItem& item, int row_block,
                          YieldSignal& yield, TileScratch& scratch, const float* partials) {
  const std::int64_t stride = PartialFloats(planned.layout);
  ItemProgress& progress = scratch.progress;
  RangeState* running = &scratch.running[row_block];
  if (!progress.is_begun) {
    FindSpans(planned, item, scratch);
    ClearState(planned.layout.padded_dim_v, running);
    progress = {.is_begun = true, .range = item.range_begin};
  }
  const RowBlock rows = RowBlockOf(item, scratch, row_block);
  for (; progress.range < item.range_end; ++progress.range) {
    const std::int64_t index = progress.range - item.range_begin;
    if (index % kMergeRanges == 0 && yield.IsSet()) return false;
    const std::int64_t row = index * (item.row_end - item.row_begin) + row_block * kRowBlock;
    const float* partial = partials + item.partial_offset + row * stride;
    RangeState* merged = &scratch.range;
    for (int i = 0; i < rows.rows; ++i) {
      merged->max[i] = partial[i * stride];
      merged->sum[i] = partial[i * stride + 1];
    }
    MergeRange(planned, rows, merged->max, merged->sum, partial + 2, stride, running);
    yield.CountUnit();
  }
  FinishBlock(planned, rows, running);
  progress.is_begun = false;
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
