// From raw scores to weights, for one row block and one range: soft cap, ALiBi, bias, visibility,
// maximum, exponentials and their sum. Rows and blocks that nothing masks pay for the last three
// only.
//
// A weight is 2^((score - maximum) * scale), with scale = exponent_scale > 0. There are two ways to
// its exponent, and the row's maximum over the range alone says which is taken:
//
//   near  fma(score, scale, -origin), where origin is maximum * scale, rounded
//   far   (score - maximum) * scale
//
// Near is one operation instead of two. Its weights are relative to 2^origin, a number that merges
// take as it is, so no digit is lost; but the maximum's own exponent is what rounding did to the
// origin, up to half an ulp of it, and scores of 2^31 and more would leave the range of exponents.
// Below 2^12 it is at most 2^-13. Without a fused multiply-add all products are rounded, and
// exponents err by 2^-24 of them: below 16 no more than by 2^-20, which is what exponents of -16
// lose anyway.
//
// Far holds for every finite score. Numbers within a factor of 2 have an exact difference, others
// one of 24 bits, of which the exponent keeps 23; where it is less than -FLT_MAX the weight is 0 by
// any arithmetic.
#if defined(ATTENTION_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_SOFTMAX_INL_H_
#undef ATTENTION_CPU_SOFTMAX_INL_H_
#else
#define ATTENTION_CPU_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
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
  void SetValues(int entry, const void* block) { blocks[count + entry] = block; }

  std::int64_t KeyOf(int entry) const { return first_key + index[entry] * kBlockTokens; }
};

// Origins of near rows are less than this.
inline constexpr float kNearExponents = HWY_NATIVE_FMA ? 4096.0f : 16.0f;

// a + b, which was added up to `sum`, but the largest or smallest number where finite ones add up
// to more than float32 holds: a bias of -FLT_MAX masks nothing by itself.
HWY_INLINE Vec SaturatedSum(Vec a, Vec b, Vec sum) {
  const F32 d;
  const Vec most = hn::Set(d, std::numeric_limits<float>::max());
  const auto are_finite = hn::And(hn::Le(hn::Abs(a), most), hn::Le(hn::Abs(b), most));
  return hn::IfThenElse(are_finite, hn::Min(hn::Max(sum, hn::Neg(most)), most), sum);
}

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

// How far the positions of 16 keys, some of which are drafts, are from `position`.
inline void FindDistances(const AttentionTask& task, std::int64_t first_key, std::int64_t position,
                          float* HWY_RESTRICT distances) {
  for (int t = 0; t < kBlockTokens; ++t) {
    const std::int64_t key = first_key + t;
    const std::int64_t at = key < task.kv_len ? task.key_position(key) : key;
    distances[t] = static_cast<float>(at - position);
  }
}

inline void AddAlibi(const AttentionTask& task, const RowSpan& row, const RangeBlocks& blocks,
                     float* HWY_RESTRICT scores) {
  const F32 d;
  const Vec slope_vec = hn::Set(d, task.alibi_slopes[row.q_head]);
  const std::int64_t position = task.position(row.query);
  alignas(64) float distances[kBlockTokens];
  for (int i = 0; i < blocks.count; ++i) {
    const bool has_drafts = task.IsDraft(blocks.KeyOf(i) + kBlockTokens - 1);
    if (has_drafts) FindDistances(task, blocks.KeyOf(i), position, distances);
    for (int t = 0; t < kBlockTokens; t += kLanes) {
      // Exact while |j - position| < 2^24.
      const Vec distance = has_drafts
                               ? hn::Load(d, distances + t)
                               : hn::Iota(d, static_cast<float>(blocks.KeyOf(i) + t - position));
      float* s = scores + i * kBlockTokens + t;
      const Vec score = hn::Load(d, s);
      const Vec sum = hn::MulAdd(slope_vec, distance, score);
      hn::Store(SaturatedSum(score, slope_vec, sum), d, s);
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
      const Vec score = hn::Load(d, s), added = hn::Load(d, bias + t);
      hn::Store(SaturatedSum(score, added, hn::Add(score, added)), d, s);
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

// Sets the scores of drafts that the row does not see to -inf. Returns the entries of drafts.
inline std::uint32_t ApplyTree(const AttentionTask& task, const RowSpan& row,
                               const RangeBlocks& blocks, float* HWY_RESTRICT scores) {
  std::uint32_t changed = 0;
  for (int i = blocks.count - 1; i >= 0; --i) {
    const std::int64_t first_key = blocks.KeyOf(i);
    const std::int64_t end = std::min(first_key + kBlockTokens, task.kv_len);
    const std::int64_t begin = std::max(first_key, task.first_query_position);
    if (begin >= first_key + kBlockTokens) break;
    for (std::int64_t key = begin; key < end; ++key) {
      if (SeesDraft(task, row.query, key - task.first_query_position)) continue;
      scores[i * kBlockTokens + key - first_key] = kNegInf;
    }
    changed |= 1u << i;
  }
  return changed;
}

// Returns the entries in which keys may have been masked, as bits.
inline std::uint32_t ApplyModifiers(const RowSpan& row, const RangeBlocks& blocks,
                                    float* HWY_RESTRICT scores) {
  const PlannedTask& planned = *row.planned;
  const AttentionTask& task = planned.task;
  if (planned.has_modifiers) ScaleScores(task.params.softmax_scale, blocks.count, scores);
  if (task.params.soft_cap > 0) ApplySoftCap(task.params.soft_cap, blocks.count, scores);
  if (task.alibi_slopes != nullptr) AddAlibi(task, row, blocks, scores);
  if (task.bias.data != nullptr) AddBias(task, row, blocks, scores);
  if (task.mask.data != nullptr) ApplyMask(task, row, blocks, scores);
  std::uint32_t changed = ApplySpan(task, row, blocks, scores);
  if (task.tree.has_rows()) changed |= ApplyTree(task, row, blocks, scores);
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

// See the top of this file.
HWY_INLINE bool IsNear(float origin) { return std::abs(origin) < kNearExponents; }

// Replaces scores, vector by vector in ascending order, by function(exponent, index of the vector
// in its block).
template <bool kIsNear, class Function>
HWY_INLINE void ForExponents(float scale, float origin, int count, float* HWY_RESTRICT scores,
                             const Function& function) {
  const F32 d;
  const Vec factor = hn::Set(d, scale);
  const Vec shift = hn::Set(d, origin);
  for (int i = 0; i < count; ++i) {
    HWY_UNROLL(16)
    for (int v = 0; v < kBlockVecs; ++v) {
      float* s = scores + i * kBlockTokens + v * kLanes;
      const Vec score = hn::Load(d, s);
      const Vec exponent =
          kIsNear ? hn::MulSub(score, factor, shift) : hn::Mul(hn::Sub(score, shift), factor);
      hn::Store(function(exponent, v), d, s);
    }
  }
}

template <bool kIsNear>
HWY_INLINE float ExponentiateFrom(float scale, float origin, int count,
                                  float* HWY_RESTRICT scores) {
  const F32 d;
  Vec sum[kBlockVecs];
  HWY_UNROLL(16)
  for (int v = 0; v < kBlockVecs; ++v) sum[v] = hn::Zero(d);
  ForExponents<kIsNear>(scale, origin, count, scores, [&](Vec exponent, int v) HWY_ATTR {
    const Vec p = Exp2(exponent);
    sum[v] = hn::Add(sum[v], p);
    return p;
  });
  for (int half = kBlockVecs / 2; half > 0; half /= 2) {
    for (int v = 0; v < half; ++v) sum[v] = hn::Add(sum[v], sum[v + half]);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum[0]));
}

HWY_NOINLINE inline float ExponentiateFar(float scale, float max, int count,
                                          float* HWY_RESTRICT scores) {
  return ExponentiateFrom<false>(scale, max == kNegInf ? 0.0f : max, count, scores);
}

// Replaces scores by powers of 2 relative to the maximum's, and returns their sum. The sum is taken
// lane by lane over the blocks and then over the lanes in a fixed tree, so blocks that are masked
// (and add 0) leave no trace in its bits.
HWY_INLINE float Exponentiate(float scale, float max, int count, float* HWY_RESTRICT scores) {
  const float origin = max * scale;
  return IsNear(origin) ? ExponentiateFrom<true>(scale, origin, count, scores)
                        : ExponentiateFar(scale, max, count, scores);
}

// Powers are relative to 2^(near + far * scale), one of which is 0.
struct Origins {
  Vec near, far;
};

HWY_INLINE Origins OriginsOf(Vec max, Vec scale) {
  const Vec origin = hn::Mul(max, scale);
  const auto is_near = hn::Lt(hn::Abs(origin), hn::Set(F32(), kNearExponents));
  return {hn::IfThenElseZero(is_near, origin), hn::IfThenZeroElse(is_near, max)};
}

// The factor that makes powers relative to `to` of those relative to `from`.
HWY_INLINE Vec FactorBetween(const Origins& from, const Origins& to, Vec scale) {
  return Exp2(hn::MulAdd(hn::Sub(from.far, to.far), scale, hn::Sub(from.near, to.near)));
}

// merged = 2^(old - new) * old + 2^(range - new) * range for the rows of a block: updates max and
// sum and returns the two factors for the outputs. Where nothing was visible so far both are 1.
inline void MergeFactors(float scale, const float* HWY_RESTRICT range_max,
                         const float* HWY_RESTRICT range_sum, float* HWY_RESTRICT max,
                         float* HWY_RESTRICT sum, float* HWY_RESTRICT old_factor,
                         float* HWY_RESTRICT range_factor) {
  const F32 d;
  const Vec neg_inf = hn::Set(d, kNegInf);
  const Vec one = hn::Set(d, 1.0f);
  const Vec factor = hn::Set(d, scale);
  for (int i = 0; i < kStateLanes; i += kLanes) {
    const Vec old = hn::Load(d, max + i);
    const Vec range = hn::Load(d, range_max + i);
    const Vec merged = MaxIgnoringNaN(range, old);
    const auto is_empty = hn::Eq(merged, neg_inf);
    const Origins origins = OriginsOf(merged, factor);
    const Vec alpha =
        hn::IfThenElse(is_empty, one, FactorBetween(OriginsOf(old, factor), origins, factor));
    const Vec beta =
        hn::IfThenElse(is_empty, one, FactorBetween(OriginsOf(range, factor), origins, factor));
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
