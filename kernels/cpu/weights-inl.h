// The second pass over the scores, for callers that want the weights themselves: p = exp(s - lse)
// with the lse of the first pass. Nothing quadratic is ever stored but what the caller asked for.
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

// Replaces scores by 2^(scale * score - log2(e) * lse); 0 throughout when the row saw nothing.
inline void WeightsFromLse(float scale, float lse, int count, float* HWY_RESTRICT scores) {
  const F32 d;
  if (lse == kNegInf) {
    std::fill_n(scores, count * kBlockTokens, 0.0f);
    return;
  }
  const Vec factor = hn::Set(d, scale);
  const Vec shift = hn::Set(d, lse * kLog2e);
  for (int i = 0; i < count * kBlockTokens; i += kLanes) {
    hn::Store(Exp2(hn::MulSub(hn::Load(d, scores + i), factor, shift)), d, scores + i);
  }
}

inline float LseOf(const PlannedTask& planned, const RowSpan& span) {
  return planned.lse[span.query * planned.task.params.num_q_heads + span.q_head];
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
    for (std::int64_t range = item.range_begin; range < item.range_end; ++range) {
      RangeBlocks blocks;
      FindBlocks(planned, item.kv_head, rows, range, &blocks);
      if (blocks.count == 0) continue;
      ComputeScores<Kv>(planned, rows, blocks, scratch);
      for (int row = 0; row < rows.rows; ++row) {
        float* p = scratch.scores + row * kScoreStride;
        WeightsFromLse(planned.exponent_scale, LseOf(planned, rows.spans[row]), blocks.count, p);
        for (int i = 0; i < blocks.count; ++i) {
          const std::int64_t key = blocks.KeyOf(i);
          const std::int64_t tokens = std::min<std::int64_t>(kBlockTokens, task.kv_len - key);
          std::copy_n(p + i * kBlockTokens, tokens, outputs[row] + key);
        }
      }
    }
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
      WeightsFromLse(planned.exponent_scale, LseOf(planned, rows.spans[row]), blocks.count, p);
      double* head_sums = sums + (rows.spans[row].q_head % group) * kRangeTokens;
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
  const std::int64_t first_key = item.range_begin * kRangeTokens;
  const std::int64_t keys = std::min<std::int64_t>(kRangeTokens, task.kv_len - first_key);
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
