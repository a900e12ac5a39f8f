// From raw scores to weights, for one row block and one range: soft cap, ALiBi, bias, visibility,
// maximum, exponentials and their sum. Rows and blocks that nothing masks pay for the last three
// only.
#if defined(ATTENTION_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_SOFTMAX_INL_H_
#undef ATTENTION_CPU_SOFTMAX_INL_H_
#else
#define ATTENTION_CPU_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// The key blocks of one range that some row of a row block sees, ascending. Scores are stored
// compactly: list entry i has scores [16 i, 16 i + 16).
struct RangeBlocks {
  std::int64_t first_key = 0;  // of the range
  int count = 0;
  int last_tokens = 0;                   // tokens of the last block up to the last visible key
  std::uint8_t index[kRangeBlocks];      // block within the range
  const void* blocks[2 * kRangeBlocks];  // key blocks, then value blocks

  const void* const* keys() const { return blocks; }
  const void* const* values() const { return blocks + count; }

  std::int64_t KeyOf(int entry) const { return first_key + index[entry] * kBlockTokens; }
};

inline void ScaleScores(float scale, int count, float* HWY_RESTRICT scores) {
  const F32 d;
  const Vec factor = hn::Set(d, scale);
  for (int i = 0; i < count * kBlockTokens; i += kLanes) {
    hn::Store(hn::Mul(hn::Load(d, scores + i), factor), d, scores + i);
  }
}

inline void ApplySoftCap(float soft_cap, int count, float* HWY_RESTRICT scores) {
  const F32 d;
  const Vec cap = hn::Set(d, soft_cap);
  for (int i = 0; i < count * kBlockTokens; i += kLanes) {
    const Vec s = hn::Load(d, scores + i);
    hn::Store(hn::Mul(cap, hn::CallTanh(d, hn::Div(s, cap))), d, scores + i);
  }
}

inline void AddAlibi(float slope, std::int64_t position, const RangeBlocks& blocks,
                     float* HWY_RESTRICT scores) {
  const F32 d;
  const Vec slope_vec = hn::Set(d, slope);
  for (int i = 0; i < blocks.count; ++i) {
    for (int t = 0; t < kBlockTokens; t += kLanes) {
      // Exact while |j - position| < 2^24.
      const Vec distance = hn::Iota(d, static_cast<float>(blocks.KeyOf(i) + t - position));
      float* s = scores + i * kBlockTokens + t;
      hn::Store(hn::MulAdd(slope_vec, distance, hn::Load(d, s)), d, s);
    }
  }
}

// Copies elements [begin, begin + 16) of a row that ends at `end`, as floats; the rest become 0. A
// row of one element is that element throughout.
inline void LoadBiasBlock(const BiasView& bias, std::int64_t row_offset, std::int64_t begin,
                          std::int64_t end, float* HWY_RESTRICT out) {
  if (bias.key_stride == 0) {
    std::fill_n(out, kBlockTokens, LoadElement(bias.data, bias.dtype, row_offset));
    return;
  }
  const int count = static_cast<int>(std::min<std::int64_t>(kBlockTokens, end - begin));
  const std::int64_t first = row_offset + begin;
  std::fill(out + count, out + kBlockTokens, 0.0f);
  const auto* bytes = static_cast<const char*>(bias.data) + first * DTypeBytes(bias.dtype);
  if (bias.dtype == DType::kFloat32) {
    std::memcpy(out, bytes, count * sizeof(float));
    return;
  }
  for (int t = 0; t < count; ++t) out[t] = LoadElement(bytes, bias.dtype, t);
}

inline void AddBias(const AttentionTask& task, const RowSpan& row, const RangeBlocks& blocks,
                    float* HWY_RESTRICT scores) {
  const F32 d;
  const std::int64_t offset = row.q_head * task.bias.head_stride + row.query * task.bias.row_stride;
  alignas(64) float bias[kBlockTokens];
  for (int i = 0; i < blocks.count; ++i) {
    LoadBiasBlock(task.bias, offset, blocks.KeyOf(i), task.kv_len, bias);
    for (int t = 0; t < kBlockTokens; t += kLanes) {
      float* s = scores + i * kBlockTokens + t;
      hn::Store(hn::Add(hn::Load(d, s), hn::Load(d, bias + t)), d, s);
    }
  }
}

inline void ApplyMask(const AttentionTask& task, const RowSpan& row, const RangeBlocks& blocks,
                      float* HWY_RESTRICT scores) {
  const std::uint8_t* mask =
      task.mask.data + row.q_head * task.mask.head_stride + row.query * task.mask.row_stride;
  if (task.mask.key_stride == 0) {
    if (*mask == 0) std::fill_n(scores, blocks.count * kBlockTokens, kNegInf);
    return;
  }
  for (int i = 0; i < blocks.count; ++i) {
    const std::int64_t key = blocks.KeyOf(i);
    const int count = static_cast<int>(std::min<std::int64_t>(kBlockTokens, task.kv_len - key));
    float* s = scores + i * kBlockTokens;
    for (int t = 0; t < count; ++t) s[t] = mask[key + t] != 0 ? s[t] : kNegInf;
  }
}

// Sets the scores of keys that the row's span leaves out to -inf. Returns the entries it changed.
inline std::uint32_t ApplySpan(const AttentionTask& task, const RowSpan& row,
                               const RangeBlocks& blocks, float* HWY_RESTRICT scores) {
  const F32 d;
  const VisibleKeys& keys = row.keys;
  const auto is_full = [&keys](std::int64_t key) {
    return keys.begin <= key && key + kBlockTokens <= keys.end;
  };
  // Between the first and the last full block all are full.
  int begin_full = 0, end_full = blocks.count;
  while (begin_full < end_full && !is_full(blocks.KeyOf(begin_full))) ++begin_full;
  while (begin_full < end_full && !is_full(blocks.KeyOf(end_full - 1))) --end_full;
  const Vec neg_inf = hn::Set(d, kNegInf);
  std::uint32_t changed = 0;
  for (int i = 0; i < blocks.count; ++i) {
    if (i == begin_full) i = end_full;
    if (i == blocks.count) break;
    const std::int64_t key = blocks.KeyOf(i);
    const auto token = [key](std::int64_t at) {
      return hn::Set(F32(), static_cast<float>(std::clamp<std::int64_t>(at - key, 0, 16)));
    };
    const Vec begin = token(keys.begin), end = token(keys.end);
    const Vec sink_begin = token(task.kv_begin), sink_end = token(keys.sink_end);
    for (int t = 0; t < kBlockTokens; t += kLanes) {
      const Vec lane = hn::Iota(d, static_cast<float>(t));
      const auto in_span = hn::And(hn::Ge(lane, begin), hn::Lt(lane, end));
      const auto in_sinks = hn::And(hn::Ge(lane, sink_begin), hn::Lt(lane, sink_end));
      float* s = scores + i * kBlockTokens + t;
      hn::Store(hn::IfThenElse(hn::Or(in_span, in_sinks), hn::Load(d, s), neg_inf), d, s);
    }
    changed |= 1u << i;
  }
  return changed;
}

// Returns the entries in which keys may have been masked, as bits.
inline std::uint32_t ApplyModifiers(const PlannedTask& planned, const RowSpan& row,
                                    const RangeBlocks& blocks, float* HWY_RESTRICT scores) {
  const AttentionTask& task = planned.task;
  if (planned.has_modifiers) ScaleScores(task.params.softmax_scale, blocks.count, scores);
  if (task.params.soft_cap > 0) ApplySoftCap(task.params.soft_cap, blocks.count, scores);
  if (task.alibi_slopes != nullptr) {
    AddAlibi(task.alibi_slopes[row.q_head], task.position(row.query), blocks, scores);
  }
  if (task.bias.data != nullptr) AddBias(task, row, blocks, scores);
  if (task.mask.data != nullptr) ApplyMask(task, row, blocks, scores);
  const std::uint32_t changed = ApplySpan(task, row, blocks, scores);
  // A bias may mask with -inf.
  return task.mask.data != nullptr || task.bias.data != nullptr ? ~0u : changed;
}

// The maximum of a row's scores, NaN left out.
HWY_INLINE float MaxScore(const float* HWY_RESTRICT scores, int count) {
  const F32 d;
  // Two maxima in turn: the latency of one, not its throughput, is what this loop would wait for.
  Vec max[2] = {hn::Set(d, kNegInf), hn::Set(d, kNegInf)};
  for (int i = 0; i < count; ++i) {
    HWY_UNROLL(16)
    for (int t = 0; t < kBlockTokens; t += kLanes) {
      max[0] = MaxIgnoringNaN(hn::Load(d, scores + i * kBlockTokens + t), max[0]);
    }
    std::swap(max[0], max[1]);
  }
  return hn::GetLane(hn::MaxOfLanes(d, MaxIgnoringNaN(max[0], max[1])));
}

// Bit t of visible[i] says whether score 16 i + t is not -inf.
inline void FindVisible(const float* HWY_RESTRICT scores, int count, std::uint16_t* visible) {
  const F32 d;
  const Vec neg_inf = hn::Set(d, kNegInf);
  for (int i = 0; i < count; ++i) {
    std::uint32_t masked = 0;
    for (int v = 0; v < kBlockVecs; ++v) {
      const Vec s = hn::Load(d, scores + i * kBlockTokens + v * kLanes);
      std::uint8_t bits[8] = {};
      hn::StoreMaskBits(d, hn::Eq(s, neg_inf), bits);
      masked |= static_cast<std::uint32_t>(bits[0] | bits[1] << 8) << (v * kLanes);
    }
    visible[i] = static_cast<std::uint16_t>(~masked);
  }
}

// Replaces scores by 2^(scale * score - max) and returns their sum. The sum is taken lane by lane
// over the blocks and then over the lanes in a fixed tree, so blocks that are masked (and add 0)
// leave no trace in its bits.
HWY_INLINE float Exponentiate(float scale, float max, int count, float* HWY_RESTRICT scores) {
  const F32 d;
  const Vec factor = hn::Set(d, scale);
  const Vec shift = hn::Set(d, max == kNegInf ? 0.0f : max);
  Vec sum[kBlockVecs];
  HWY_UNROLL(16)
  for (int v = 0; v < kBlockVecs; ++v) sum[v] = hn::Zero(d);
  for (int i = 0; i < count; ++i) {
    HWY_UNROLL(16)
    for (int v = 0; v < kBlockVecs; ++v) {
      float* s = scores + i * kBlockTokens + v * kLanes;
      const Vec p = Exp2(hn::MulSub(hn::Load(d, s), factor, shift));
      hn::Store(p, d, s);
      sum[v] = hn::Add(sum[v], p);
    }
  }
  for (int half = kBlockVecs / 2; half > 0; half /= 2) {
    for (int v = 0; v < half; ++v) sum[v] = hn::Add(sum[v], sum[v + half]);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum[0]));
}

// merged = 2^(old - new) * old + 2^(range - new) * range for the rows of a block: updates max and
// sum and returns the two factors for the outputs. Where nothing was visible so far both are 1.
inline void MergeFactors(const float* HWY_RESTRICT range_max, const float* HWY_RESTRICT range_sum,
                         float* HWY_RESTRICT max, float* HWY_RESTRICT sum,
                         float* HWY_RESTRICT old_factor, float* HWY_RESTRICT range_factor) {
  const F32 d;
  const Vec neg_inf = hn::Set(d, kNegInf);
  const Vec one = hn::Set(d, 1.0f);
  for (int i = 0; i < kStateLanes; i += kLanes) {
    const Vec old = hn::Load(d, max + i);
    const Vec range = hn::Load(d, range_max + i);
    const Vec merged = MaxIgnoringNaN(range, old);
    const auto is_empty = hn::Eq(merged, neg_inf);
    const Vec alpha = hn::IfThenElse(is_empty, one, Exp2(hn::Sub(old, merged)));
    const Vec beta = hn::IfThenElse(is_empty, one, Exp2(hn::Sub(range, merged)));
    const Vec scaled = hn::Mul(hn::Load(d, sum + i), alpha);
    hn::Store(hn::MulAdd(hn::Load(d, range_sum + i), beta, scaled), d, sum + i);
    hn::Store(merged, d, max + i);
    hn::Store(alpha, d, old_factor + i);
    hn::Store(beta, d, range_factor + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
