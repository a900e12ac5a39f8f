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
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// One row block of a tile.
struct RowBlock {
  int index = 0;  // in the tile
  int rows = 0;   // 1 to kRowBlock
  const RowSpan* spans = nullptr;
};

inline int NumRowBlocks(const WorkItem& item) {
  return static_cast<int>(CeilDiv<std::int64_t>(item.row_end - item.row_begin, kRowBlock));
}

inline RowBlock RowBlockOf(const WorkItem& item, const TileScratch& scratch, int index) {
  const std::int64_t rows = item.row_end - item.row_begin - index * kRowBlock;
  return {index, static_cast<int>(std::min<std::int64_t>(rows, kRowBlock)),
          scratch.rows + index * kRowBlock};
}

// Fills scratch.rows.
inline void FindSpans(const PlannedTask& planned, const WorkItem& item, TileScratch& scratch) {
  const int group = planned.task.params.group_size();
  for (std::int64_t row = item.row_begin; row < item.row_end; ++row) {
    RowSpan& span = scratch.rows[row - item.row_begin];
    span.query = row / group;
    span.q_head = item.kv_head * group + static_cast<int>(row % group);
    span.keys = VisibleKeysOf(planned.task, planned.task.position(span.query));
  }
}

inline const char* QueryData(const RowsView& q, const RowSpan& span) {
  return static_cast<const char*>(q.data) +
         (span.query * q.row_stride + span.q_head * q.head_stride) *
             static_cast<std::int64_t>(DTypeBytes(q.dtype));
}

// Copies a row of q as float32 bits to out [kMaxHeadDim].
inline void WidenQuery(const char* data, DType dtype, int dim_qk, std::uint32_t* out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, data, dim_qk * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (int dim = 0; dim < dim_qk; ++dim) {
      std::uint16_t bits;
      std::memcpy(&bits, data + dim * sizeof(bits), sizeof(bits));
      out[dim] = static_cast<std::uint32_t>(bits) << 16;
    }
  } else {
    for (int dim = 0; dim < dim_qk; ++dim) {
      out[dim] = std::bit_cast<std::uint32_t>(LoadElement(data, DType::kFloat16, dim));
    }
  }
}

// Widens the rows of q to float, [dim][12 rows]; missing rows of the last block become 0.
inline void LoadQueries(const PlannedTask& planned, const WorkItem& item, TileScratch& scratch) {
  const RowsView& q = planned.task.q;
  const int dim_qk = planned.layout.dim_qk;
  alignas(64) std::uint32_t wide[4][kMaxHeadDim];
  const std::int64_t num_rows = item.row_end - item.row_begin;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const char* data = QueryData(q, scratch.rows[row]);
    for (std::size_t at = 0; at < dim_qk * DTypeBytes(q.dtype); at += 64) PrefetchFar(data + at);
  }
  for (int index = 0; index < NumRowBlocks(item); ++index) {
    const RowBlock block = RowBlockOf(item, scratch, index);
    auto* out = reinterpret_cast<std::uint32_t*>(scratch.q[index]);
    for (int first = 0; first < kRowBlock; first += 4) {
      for (int i = 0; i < 4; ++i) {
        if (first + i < block.rows) {
          WidenQuery(QueryData(q, block.spans[first + i]), q.dtype, dim_qk, wide[i]);
        } else {
          std::fill_n(wide[i], dim_qk, 0u);
        }
      }
      // The last step may run over into dims that nobody reads; scratch.q has room for them.
      for (int dim = 0; dim < dim_qk; dim += 4) {
        Transpose4x4(wide[0] + dim, wide[1] + dim, wide[2] + dim, wide[3] + dim,
                     out + dim * kRowBlock + first, kRowBlock);
      }
    }
  }
}

// Marks the blocks of [begin, end) that lie in the range and returns their bits.
HWY_INLINE std::uint32_t BlockBits(std::int64_t first_key, std::int64_t begin, std::int64_t end,
                                   std::int64_t* last_end) {
  const std::int64_t lo = std::max<std::int64_t>(begin - first_key, 0);
  const std::int64_t hi = std::min<std::int64_t>(end - first_key, kRangeTokens);
  if (lo >= hi) return 0;
  *last_end = std::max(*last_end, hi);
  const int first = static_cast<int>(lo / kBlockTokens);
  const int count = static_cast<int>(CeilDiv<std::int64_t>(hi, kBlockTokens)) - first;
  return (count == 32 ? ~0u : (1u << count) - 1) << first;
}

// The blocks of the range that some row sees. Page table entries of other blocks are not read.
inline void FindBlocks(const PlannedTask& planned, int kv_head, const RowBlock& rows,
                       std::int64_t range, RangeBlocks* blocks) {
  blocks->first_key = range * kRangeTokens;
  std::uint32_t needed = 0;
  std::int64_t end = 0;
  for (int row = 0; row < rows.rows; ++row) {
    const VisibleKeys& keys = rows.spans[row].keys;
    needed |= BlockBits(blocks->first_key, keys.begin, keys.end, &end);
    needed |= BlockBits(blocks->first_key, planned.task.kv_begin, keys.sink_end, &end);
  }
  blocks->count = std::popcount(needed);
  const PackedLayout& layout = planned.layout;
  // The page is looked up once for each page, not for each block: divisions are slow.
  std::int64_t block_in_page = range * kRangeBlocks % layout.blocks_per_page;
  std::int64_t page_index = range * kRangeBlocks / layout.blocks_per_page;
  int previous = 0;
  for (int entry = 0; needed != 0; needed &= needed - 1, ++entry) {
    const int index = std::countr_zero(needed);
    block_in_page += index - previous;
    previous = index;
    while (block_in_page >= layout.blocks_per_page) {
      block_in_page -= layout.blocks_per_page;
      ++page_index;
    }
    const auto* page = static_cast<const char*>(planned.pages[page_index]);
    blocks->index[entry] = static_cast<std::uint8_t>(index);
    blocks->blocks[entry] = page + layout.key_offset(kv_head, block_in_page);
    blocks->blocks[blocks->count + entry] = page + layout.value_offset(kv_head, block_in_page);
    blocks->last_tokens =
        static_cast<int>(std::min<std::int64_t>(kBlockTokens, end - index * kBlockTokens));
  }
}

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

// Writes factor * o as `dtype` to unaligned memory. Adding 0 turns -0 into +0; see pv-inl.h.
inline void StoreScaled(const float* HWY_RESTRICT o, float factor, int dim_v, DType dtype,
                        char* HWY_RESTRICT out) {
  const F32 d;
  const Vec scale = hn::Set(d, factor);
  alignas(64) float scaled[kMaxHeadDim];
  for (int channel = 0; channel < dim_v; channel += kLanes) {
    hn::Store(hn::MulAdd(hn::Load(d, o + channel), scale, hn::Zero(d)), d, scaled + channel);
  }
  if (dtype == DType::kFloat32) {
    std::memcpy(out, scaled, dim_v * sizeof(float));
    return;
  }
  for (int channel = 0; channel < dim_v; ++channel) {
    StoreElement(out, dtype, channel, scaled[channel]);
  }
}

inline char* OutputData(const MutableRowsView& o, const RowSpan& span) {
  return static_cast<char*>(o.data) + (span.query * o.row_stride + span.q_head * o.head_stride) *
                                          static_cast<std::int64_t>(DTypeBytes(o.dtype));
}

inline void FinishRow(const PlannedTask& planned, const RowSpan& span, float max, float sum,
                      const float* o) {
  const AttentionTask& task = planned.task;
  const bool is_empty = sum == 0.0f;
  if (planned.lse != nullptr) {
    const double log_sum = std::log(static_cast<double>(sum)) + (max == kNegInf ? 0.0 : max);
    planned.lse[span.query * task.params.num_q_heads + span.q_head] =
        is_empty ? kNegInf : static_cast<float>(log_sum);
  }
  // Multiplying by the reciprocal costs half an ulp; dividing each output would cost 5 % of a
  // prompt of 512 tokens.
  StoreScaled(o, is_empty ? 0.0f : 1.0f / sum, planned.layout.dim_v, task.o.dtype,
              OutputData(task.o, span));
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
