// The second pass over the scores, for callers that want the weights themselves. Nothing quadratic
// is ever stored but what the caller asked for.
//
// A weight comes from the row's maximum and sum, not from its lse: the last place of a float32 lse
// of -1e9 is worth a factor of e^32. The sum is that of the same scores to the bit, by the same
// exponents.
#if defined(ATTENTION_CPU_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_WEIGHTS_INL_H_
#undef ATTENTION_CPU_WEIGHTS_INL_H_
#else
#define ATTENTION_CPU_WEIGHTS_INL_H_
#endif

#include <algorithm>

#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

template <bool kIsNear>
inline void WeightsFrom(float scale, float origin, float factor, int count,
                        float* HWY_RESTRICT scores) {
  const Vec share = hn::Set(F32(), factor);
  ForExponents<kIsNear>(scale, origin, count, scores, [&](Vec exponent, int) HWY_ATTR {
    const Vec p = Exp2(exponent);
    // A key that the row does not see has no weight, whatever the sum of the others is.
    return hn::IfThenZeroElse(hn::Eq(p, hn::Zero(F32())), hn::Mul(p, share));
  });
}

// Replaces scores by weights; 0 throughout when the row saw nothing.
inline void WeightsOf(float scale, float max, float factor, int count, float* HWY_RESTRICT scores) {
  const float origin = max * scale;
  if (IsNear(origin)) return WeightsFrom<true>(scale, origin, factor, count, scores);
  WeightsFrom<false>(scale, max == kNegInf ? 0.0f : max, factor, count, scores);
}

// Fills maxima and sums of a row block over the item's ranges, by the scores and the order of the
// first pass.
template <class Kv>
inline void SumRows(const PlannedTask& planned, const WorkItem& item, const RowBlock& rows,
                    TileScratch& scratch, RangeState* state) {
  alignas(64) float ignored[2][kStateLanes];
  RangeState* range_state = &scratch.range;
  ClearState(/*padded_dim_v=*/0, state);
  for (std::int64_t range = item.range_begin; range < item.range_end; ++range) {
    RangeBlocks blocks;
    FindBlocks(planned, item.kv_head, rows, range, &blocks);
    if (blocks.count == 0) continue;
    ComputeScores<Kv>(planned, rows, blocks, scratch);
    for (int row = 0; row < rows.rows; ++row) {
      float* scores = scratch.scores + row * kScoreStride;
      range_state->max[row] = MaxScore(scores, blocks.count);
      range_state->sum[row] =
          Exponentiate(planned.exponent_scale, range_state->max[row], blocks.count, scores);
    }
    MergeFactors(planned.exponent_scale, range_state->max, range_state->sum, state->max, state->sum,
                 ignored[0], ignored[1]);
  }
}

// Writes the weights of a row block; outputs[row] is the row's of key 0.
template <class Kv>
inline void WriteWeights(const PlannedTask& planned, const WorkItem& item, const RowBlock& rows,
                         const RangeState& state, TileScratch& scratch, float* const* outputs) {
  float factors[kRowBlock];
  for (int row = 0; row < rows.rows; ++row) {
    factors[row] = WeightFactor(planned, rows.spans[row].q_head, state.max[row], state.sum[row]);
  }
  for (std::int64_t range = item.range_begin; range < item.range_end; ++range) {
    RangeBlocks blocks;
    FindBlocks(planned, item.kv_head, rows, range, &blocks);
    if (blocks.count == 0) continue;
    ComputeScores<Kv>(planned, rows, blocks, scratch);
    for (int row = 0; row < rows.rows; ++row) {
      float* p = scratch.scores + row * kScoreStride;
      WeightsOf(planned.exponent_scale, state.max[row], factors[row], blocks.count, p);
      for (int i = 0; i < blocks.count; ++i) {
        const std::int64_t key = blocks.KeyOf(i);
        const std::int64_t tokens = std::min<std::int64_t>(kBlockTokens, planned.task.kv_len - key);
        std::copy_n(p + i * kBlockTokens, tokens, outputs[row] + key);
      }
    }
  }
}

template <class Kv>
void Weights(const PlannedTask& planned, const WorkItem& item, TileScratch& scratch,
             std::int64_t q_begin, float* weights) {
  const AttentionTask& task = planned.task;
  FindSpans(planned, item, scratch);
  LoadQueries<Kv>(planned, item, scratch);
  scratch.ahead.Clear();
  for (int index = 0; index < NumRowBlocks(item); ++index) {
    const RowBlock rows = RowBlockOf(item, scratch, index);
    float* outputs[kRowBlock];
    for (int row = 0; row < rows.rows; ++row) {
      const RowSpan& span = rows.spans[row];
      outputs[row] =
          weights + ((span.query - q_begin) * task.params.num_q_heads + span.q_head) * task.kv_len;
      std::fill_n(outputs[row], task.kv_len, 0.0f);
    }
    RangeState* state = &scratch.running[index];
    SumRows<Kv>(planned, item, rows, scratch, state);
    WriteWeights<Kv>(planned, item, rows, *state, scratch, outputs);
  }
}

// Adds the weights of one tile to sums [group_size][kRangeTokens], rows in ascending order, from
// the present row block on. Returns whether all are.
template <class Kv>
bool AddColumns(const PlannedTask& planned, const WorkItem& item, YieldSignal& yield,
                TileScratch& scratch, double* sums) {
  FindSpans(planned, item, scratch);
  LoadQueries<Kv>(planned, item, scratch);
  scratch.ahead.Clear();
  const int group = planned.task.params.group_size();
  for (int& index = scratch.progress.row_block; index < NumRowBlocks(item); ++index) {
    if (yield.IsSet()) return false;
    const RowBlock rows = RowBlockOf(item, scratch, index);
    RangeBlocks blocks;
    FindBlocks(planned, item.kv_head, rows, item.range_begin, &blocks);
    if (blocks.count == 0) continue;
    ComputeScores<Kv>(planned, rows, blocks, scratch);
    for (int row = 0; row < rows.rows; ++row) {
      float* p = scratch.scores + row * kScoreStride;
      const RowSpan& span = rows.spans[row];
      const float* total =
          planned.totals + 2 * (span.query * planned.task.params.num_q_heads + span.q_head);
      WeightsOf(planned.exponent_scale, total[0], total[1], blocks.count, p);
      double* head_sums = sums + (span.q_head % group) * kRangeTokens;
      for (int i = 0; i < blocks.count; ++i) {
        double* block_sums = head_sums + blocks.index[i] * kBlockTokens;
        for (int t = 0; t < kBlockTokens; ++t) block_sums[t] += p[i * kBlockTokens + t];
      }
    }
    yield.CountUnit();
  }
  scratch.progress.row_block = 0;
  return true;
}

template <class Kv>
bool ColumnSums(const PlannedTask& planned, const WorkItem& item, YieldSignal& yield,
                TileScratch& scratch, double* sums) {
  const AttentionTask& task = planned.task;
  const int group = task.params.group_size();
  const std::int64_t first_key = item.range_begin * planned.range_tokens;
  const std::int64_t keys = std::min<std::int64_t>(planned.range_tokens, task.kv_len - first_key);
  ItemProgress& progress = scratch.progress;
  if (!progress.is_begun) {
    std::fill_n(sums, group * kRangeTokens, 0.0);
    progress = {.is_begun = true, .row = item.row_begin};
  }
  WorkItem tile = item;
  for (; progress.row < item.row_end; progress.row += kTileRows) {
    tile.row_begin = progress.row;
    tile.row_end = std::min(item.row_end, progress.row + kTileRows);
    if (!AddColumns<Kv>(planned, tile, yield, scratch, sums)) return false;
  }
  for (std::int64_t key = 0; key < keys; ++key) {
    float* out =
        task.column_sums + (first_key + key) * task.params.num_q_heads + item.kv_head * group;
    for (int g = 0; g < group; ++g) out[g] = static_cast<float>(sums[g * kRangeTokens + key]);
  }
  progress.is_begun = false;
  return true;
}

template <class Kv>
AttentionKernels MakeKernels() {
  return {.attend = Attend<Kv>,
          .merge = MergePartials,
          .weights = Weights<Kv>,
          .column_sums = ColumnSums<Kv>};
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
