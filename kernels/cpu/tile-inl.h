// Drives the micro-kernels over one work item: load the rows, walk the ranges in ascending order,
// merge, finish. See README.md for why nothing here depends on how rows are grouped.
#if defined(ATTENTION_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_TILE_INL_H_
#undef ATTENTION_CPU_TILE_INL_H_
#else
#define ATTENTION_CPU_TILE_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

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
                              .q = scratch.q[rows.index],
                              .key_blocks = blocks.keys(),
                              .prefetch = rows.index == 0,
                              .num_blocks = blocks.count,
                              .dim_qk = static_cast<std::size_t>(planned.layout.dim_qk),
                              .scale = planned.task.params.softmax_scale,
                              .scores = scratch.scores,
                          });
  for (int row = 0; row < rows.rows; ++row) {
    scratch.masked[row] =
        ApplyModifiers(planned, rows.spans[row], blocks, scratch.scores + row * kScoreStride);
  }
}

enum ValueState : std::uint8_t { kUnknown, kFinite, kNotFinite };

// Whether the value block may be multiplied by the zero weights of masked keys.
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
  constexpr std::uint32_t kAllTokens = (1u << kBlockTokens) - 1;
  const std::uint32_t all_entries = ~0u >> (kRangeBlocks - blocks.count);
  std::uint32_t masked_entries = 0;
  for (int row = 0; row < rows.rows; ++row) {
    float* scores = scratch.scores + row * kScoreStride;
    bool has_others = false;
    const float max = MaxScore(scores, blocks.count, scratch.masked[row], &has_others);
    const std::uint32_t entries = has_others ? all_entries : scratch.masked[row] & all_entries;
    std::uint16_t* visible = scratch.visible[row];
    std::fill_n(visible, kRangeBlocks, static_cast<std::uint16_t>(kAllTokens));
    FindVisible(scores, entries, visible);
    masked_entries |= entries;
    state->max[row] = max;
    state->sum[row] = Exponentiate(max, blocks.count, scores);
  }
  for (; masked_entries != 0; masked_entries &= masked_entries - 1) {
    const int entry = std::countr_zero(masked_entries);
    if (!IsSafeBlock<Kv>(planned.layout, blocks, entry, scratch)) return false;
  }
  return true;
}

// Fills `state` for a row block and range.
template <class Kv>
inline void AttendRange(const PlannedTask& planned, const RowBlock& rows, const RangeBlocks& blocks,
                        TileScratch& scratch, RangeState* state) {
  ComputeScores<Kv>(planned, rows, blocks, scratch);
  const bool is_safe = ComputeWeights<Kv>(planned, rows, blocks, scratch, state);
  const int padded_dim_v = planned.layout.padded_dim_v;
  const ValueBlocks values{blocks.values(), blocks.count, blocks.last_tokens, padded_dim_v,
                           /*prefetch=*/rows.index == 0};
  if (is_safe) {
    ForRowGroups(rows.rows,
                 ValueFunction<Kv>{.p = scratch.scores, .values = values, .o = state->o});
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

// Merges a range's result into the running state. Outputs of the range lie o_stride apart.
inline void MergeRange(int rows, int padded_dim_v, const float* max, const float* sum,
                       const float* range_o, std::int64_t o_stride, RangeState* state) {
  const F32 d;
  alignas(64) float old_factor[kStateLanes];
  alignas(64) float range_factor[kStateLanes];
  MergeFactors(max, sum, state->max, state->sum, old_factor, range_factor);
  for (int row = 0; row < rows; ++row) {
    float* o = state->o + row * padded_dim_v;
    const float* added = range_o + row * o_stride;
    const Vec alpha = hn::Set(d, old_factor[row]);
    const Vec beta = hn::Set(d, range_factor[row]);
    for (int channel = 0; channel < padded_dim_v; channel += kLanes) {
      const Vec scaled = hn::Mul(hn::Load(d, o + channel), alpha);
      hn::Store(hn::MulAdd(hn::LoadU(d, added + channel), beta, scaled), d, o + channel);
    }
  }
}

// Lets the learned sink logits join the denominators: a range with maximum `sink`, sum 1 and output
// 0.
inline void MergeSinks(const PlannedTask& planned, const RowBlock& rows, RangeState* state) {
  alignas(64) float max[kStateLanes], sum[kStateLanes];
  alignas(64) float zeros[kMaxHeadDim] = {};
  for (int lane = 0; lane < kStateLanes; ++lane) {
    const float sink = lane < rows.rows ? planned.task.sink_logits[rows.spans[lane].q_head] : 0.0f;
    // A NaN logit must not be taken for a maximum but reach the sum.
    max[lane] = std::isnan(sink) ? kNegInf : sink;
    sum[lane] = std::isnan(sink) ? sink : sink == kNegInf ? 0.0f : 1.0f;
  }
  MergeRange(rows.rows, planned.layout.padded_dim_v, max, sum, zeros, 0, state);
}

inline void FinishBlock(const PlannedTask& planned, const RowBlock& rows, RangeState* state) {
  for (int row = 0; row < rows.rows; ++row) {
    const char* out = OutputData(planned.task.o, rows.spans[row]);
    const std::size_t bytes = planned.layout.dim_v * DTypeBytes(planned.task.o.dtype);
    for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(out + at, /*rw=*/1);
  }
  if (planned.task.sink_logits != nullptr) MergeSinks(planned, rows, state);
  for (int row = 0; row < rows.rows; ++row) {
    FinishRow(planned, rows.spans[row], state->max[row], state->sum[row],
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
inline void AttendWhole(const PlannedTask& planned, const RowBlock& rows, const RangeBlocks& blocks,
                        bool is_first, TileScratch& scratch) {
  RangeState* running = &scratch.running[rows.index];
  // Merging into nothing gives the range's own bits, but for signs of zero: skip it.
  if (is_first) return AttendRange<Kv>(planned, rows, blocks, scratch, running);
  RangeState* range = &scratch.range;
  AttendRange<Kv>(planned, rows, blocks, scratch, range);
  const int padded_dim_v = planned.layout.padded_dim_v;
  MergeRange(rows.rows, padded_dim_v, range->max, range->sum, range->o, padded_dim_v, running);
}

// The next range that the item's rows can see: the ones between the sinks and the window are left
// out.
inline std::int64_t NextRange(const PlannedTask& planned, const WorkItem& item,
                              const TileScratch& scratch, std::int64_t range) {
  ++range;
  const std::int64_t last = item.row_end - item.row_begin - 1;
  const VisibleKeys& oldest = scratch.rows[0].keys;
  const std::int64_t sink_end =
      std::max({planned.task.kv_begin, oldest.sink_end, scratch.rows[last].keys.sink_end});
  if (range * kRangeTokens < sink_end) return range;
  return std::max(range, oldest.begin / kRangeTokens);
}

template <class Kv>
void AttendSplit(const PlannedTask& planned, const WorkItem& item, TileScratch& scratch,
                 float* partials) {
  const std::int64_t rows_per_range = item.row_end - item.row_begin;
  for (std::int64_t range = item.range_begin; range < item.range_end; ++range) {
    std::fill_n(scratch.value_state, kRangeBlocks, kUnknown);
    for (int index = 0; index < NumRowBlocks(item); ++index) {
      const RowBlock rows = RowBlockOf(item, scratch, index);
      RangeBlocks blocks;
      FindBlocks(planned, item.kv_head, rows, range, &blocks);
      if (blocks.count > 0) {
        AttendRange<Kv>(planned, rows, blocks, scratch, &scratch.range);
      } else {
        ClearState(planned.layout.padded_dim_v, &scratch.range);
      }
      const std::int64_t row = (range - item.range_begin) * rows_per_range + index * kRowBlock;
      StorePartial(planned, rows.rows, scratch.range,
                   partials + item.partial_offset + row * PartialFloats(planned.layout));
    }
  }
}

template <class Kv>
void Attend(const PlannedTask& planned, const WorkItem& item, TileScratch& scratch,
            float* partials) {
  FindSpans(planned, item, scratch);
  LoadQueries(planned, item, scratch);
  if (item.partial_offset >= 0) return AttendSplit<Kv>(planned, item, scratch, partials);
  const int num_blocks = NumRowBlocks(item);
  bool is_first[kTileBlocks];
  std::fill_n(is_first, kTileBlocks, true);
  for (std::int64_t range = item.range_begin; range < item.range_end;
       range = NextRange(planned, item, scratch, range)) {
    std::fill_n(scratch.value_state, kRangeBlocks, kUnknown);
    for (int index = 0; index < num_blocks; ++index) {
      const RowBlock rows = RowBlockOf(item, scratch, index);
      RangeBlocks blocks;
      FindBlocks(planned, item.kv_head, rows, range, &blocks);
      if (blocks.count == 0) continue;
      AttendWhole<Kv>(planned, rows, blocks, is_first[index], scratch);
      is_first[index] = false;
    }
  }
  for (int index = 0; index < num_blocks; ++index) {
    RangeState* running = &scratch.running[index];
    if (is_first[index]) ClearState(planned.layout.padded_dim_v, running);
    FinishBlock(planned, RowBlockOf(item, scratch, index), running);
  }
}

inline void MergePartials(const PlannedTask& planned, const WorkItem& item, TileScratch& scratch,
                          const float* partials) {
  const std::int64_t stride = PartialFloats(planned.layout);
  const int padded_dim_v = planned.layout.padded_dim_v;
  FindSpans(planned, item, scratch);
  for (int index = 0; index < NumRowBlocks(item); ++index) {
    const RowBlock rows = RowBlockOf(item, scratch, index);
    RangeState* running = &scratch.running[index];
    ClearState(padded_dim_v, running);
    for (std::int64_t range = item.range_begin; range < item.range_end; ++range) {
      const std::int64_t row =
          (range - item.range_begin) * (item.row_end - item.row_begin) + index * kRowBlock;
      const float* partial = partials + item.partial_offset + row * stride;
      RangeState* merged = &scratch.range;
      for (int i = 0; i < rows.rows; ++i) {
        merged->max[i] = partial[i * stride];
        merged->sum[i] = partial[i * stride + 1];
      }
      MergeRange(rows.rows, padded_dim_v, merged->max, merged->sum, partial + 2, stride, running);
    }
    FinishBlock(planned, rows, running);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
