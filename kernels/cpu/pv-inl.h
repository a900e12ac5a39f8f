// Weighted sums of values: o[row][channel] = sum over keys of p[row][key] * v[key][channel], for
// one range. Every output is a single chain of multiply-adds over ascending keys, in its own lane.
//
// A key that is masked for a row has p = 0, which adds nothing to a finite chain except that -0
// may become +0 (undone when rows are finished). Where its value is not finite, 0 * v would be NaN;
// such ranges take SumVisibleValues, which leaves masked keys out.
#if defined(ATTENTION_CPU_PV_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_PV_INL_H_
#undef ATTENTION_CPU_PV_INL_H_
#else
#define ATTENTION_CPU_PV_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "kernels/cpu/qk-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// Adds kTokens consecutive tokens, which lie side by side if there are two.
template <class Kv, int kTokens, int kRows, int kVecs>
HWY_INLINE void AccumulateValues(const float* HWY_RESTRICT p,
                                 const typename Kv::Element* HWY_RESTRICT values,
                                 Vec (&sum)[kRows][kVecs]) {
  Vec value[kVecs][Kv::kPack];
  HWY_UNROLL(16)
  for (int v = 0; v < kVecs; ++v) Kv::Load(values + v * kLanes * Kv::kPack, value[v]);
  HWY_UNROLL(2)
  for (int token = 0; token < kTokens; ++token) {
    HWY_UNROLL(16)
    for (int row = 0; row < kRows; ++row) {
      const Vec broadcast = hn::Set(F32(), p[row * kScoreStride + token]);
      HWY_UNROLL(16)
      for (int v = 0; v < kVecs; ++v) {
        sum[row][v] = hn::MulAdd(broadcast, value[v][token], sum[row][v]);
      }
    }
  }
}

// kRows rows and kVecs vectors of channels, from `channel`. Writes o[row][channel]. Asks for kAhead
// lines a step.
template <class Kv, int kRows, int kVecs, int kAhead>
HWY_NOINLINE void ValueTile(const float* HWY_RESTRICT p, const ValueBlocks& values, int channel,
                            AheadList& ahead, float* HWY_RESTRICT o) {
  const std::size_t step = static_cast<std::size_t>(values.padded_dim_v) * Kv::kPack;
  Vec sum[kRows][kVecs];
  HWY_UNROLL(16)
  for (int row = 0; row < kRows; ++row) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVecs; ++v) sum[row][v] = hn::Zero(F32());
  }
  AheadCursor cursor = ahead.cursor();
  for (int block = 0; block < values.num_blocks; ++block) {
    const auto* value = ElementsOf<Kv>(values.blocks[block]) + channel * Kv::kPack;
    const float* weight = p + block * kBlockTokens;
    const int tokens = values.TokensOf(block);
    for (int pack = tokens / Kv::kPack; pack != 0; --pack) {
      AccumulateValues<Kv, Kv::kPack, kRows, kVecs>(weight, value, sum);
      value += step;
      weight += Kv::kPack;
      HWY_UNROLL(16)
      for (int i = 0; i < kAhead; ++i) cursor.Step();
    }
    // The second token of an odd last pair may never have been written.
    if (tokens % Kv::kPack != 0) AccumulateValues<Kv, 1, kRows, kVecs>(weight, value, sum);
  }
  if constexpr (kAhead > 0) ahead.set_cursor(cursor);
  HWY_UNROLL(16)
  for (int row = 0; row < kRows; ++row) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVecs; ++v) {
      hn::StoreU(sum[row][v], F32(), o + row * values.padded_dim_v + channel + v * kLanes);
    }
  }
}

template <int kRows>
constexpr int ValueVecsPerTile() {
  if (kIsWide) return kRows >= 8 ? 2 : kRows == 4 ? 4 : 8;
  return kRows >= 6 ? 2 : kRows == 1 ? 8 : kBlockVecs == 2 ? 2 : 4;
}

template <class Kv, int kRows, int kVecs>
HWY_INLINE void ValueChannels(const float* HWY_RESTRICT p, const ValueBlocks& values, int channel,
                              AheadList& ahead, float* HWY_RESTRICT o) {
  for (; channel + kVecs * kLanes <= values.padded_dim_v; channel += kVecs * kLanes) {
    constexpr std::size_t kStepBytes = kVecs * kLanes * Kv::kPack * sizeof(typename Kv::Element);
    WithAhead<kRows, kStepBytes>(ahead, [&]<int kAhead>() HWY_ATTR {
      if constexpr (Kv::kIsDot) {
        Kv::template ValueTile<kRows, kVecs, kAhead>(p, values, channel, ahead, o);
      } else {
        ValueTile<Kv, kRows, kVecs, kAhead>(p, values, channel, ahead, o);
      }
    });
  }
  if constexpr (kVecs > 1) {
    if (channel < values.padded_dim_v) {
      ValueChannels<Kv, kRows, kVecs / 2>(p, values, channel, ahead, o);
    }
  }
}

template <class Kv>
struct ValueFunction {
  const float* p;  // [row][kScoreStride]
  const ValueBlocks& values;
  AheadList& ahead;
  float* o;  // [row][padded_dim_v]

  template <int kRows>
  void Run(int row) const {
    ValueChannels<Kv, kRows, ValueVecsPerTile<kRows>()>(p + row * kScoreStride, values, 0, ahead,
                                                        o + row * values.padded_dim_v);
  }
};

// True if the first `tokens` tokens of a value block hold finite numbers only: x * 0 is 0 or NaN.
template <class Kv>
HWY_NOINLINE bool IsFiniteBlock(const void* block, int tokens, int padded_dim_v, int dim_v) {
  using Element = typename Kv::Element;
  const F32 d;
  const Vec zero = hn::Zero(d);
  Vec sum = zero;
  if constexpr (Kv::kHeader > 0) {
    const float* scales = ScalesOf(block);
    return std::all_of(scales, scales + tokens, [](float scale) { return std::isfinite(scale); });
  }
  for (int token = 0; token < tokens; token += Kv::kPack) {
    const auto* row = static_cast<const Element*>(block) + token * padded_dim_v;
    for (int channel = 0; channel < dim_v; channel += kLanes) {
      Vec value[Kv::kPack];
      Kv::Load(row + channel * Kv::kPack, value);
      for (int i = 0; i < Kv::kPack && token + i < tokens; ++i) {
        // Padded channels may hold anything.
        const Vec x = channel + kLanes <= dim_v
                          ? value[i]
                          : hn::IfThenElseZero(hn::FirstN(d, dim_v - channel), value[i]);
        sum = hn::MulAdd(x, zero, sum);
      }
    }
  }
  return hn::AllTrue(d, hn::Eq(sum, zero));
}

// Lets the weights of one row take along the scales of the values that they multiply.
template <class Kv>
inline void ScaleWeights(const ValueBlocks& values, float* HWY_RESTRICT p) {
  const F32 d;
  for (int block = 0; block < values.num_blocks; ++block, p += kBlockTokens) {
    const float* scales = ScalesOf(values.blocks[block]);
    for (int t = 0; t < kBlockTokens; t += kLanes) {
      hn::Store(Scaled<Kv>(hn::Load(d, p + t), hn::Load(d, scales + t)), d, p + t);
    }
  }
}

// Brings weights into the form in which they meet the values.
template <class Kv>
inline void PrepareWeights(const ValueBlocks& values, bool is_safe, float* HWY_RESTRICT p) {
  if constexpr (Kv::kHeader > 0) ScaleWeights<Kv>(values, p);
  if constexpr (Kv::kIsDot) {
    if (is_safe) {
      Kv::PairWeights(values.num_blocks, p);
    } else {
      Kv::RoundWeights(values.num_blocks, p);
    }
  }
}

// The slow form for one row: only tokens whose bit is set in visible[block] are read.
template <class Kv>
HWY_NOINLINE void SumVisibleValues(const float* HWY_RESTRICT p, const std::uint16_t* visible,
                                   const ValueBlocks& values, float* HWY_RESTRICT o) {
  const F32 d;
  for (int channel = 0; channel < values.padded_dim_v; channel += kLanes) {
    Vec sum = hn::Zero(d);
    for (int block = 0; block < values.num_blocks; ++block) {
      const auto* base = ElementsOf<Kv>(values.blocks[block]);
      const int tokens = values.TokensOf(block);
      for (int step = 0; step < tokens + tokens % 2; ++step) {
        const int token = Kv::kIsDot ? step ^ 1 : step;  // the order of the dot product
        if (token >= tokens || (visible[block] >> token & 1) == 0) continue;
        Vec value[Kv::kPack];
        const int pack = token / Kv::kPack;
        Kv::Load(base + (pack * values.padded_dim_v + channel) * Kv::kPack, value);
        const Vec weight = hn::Set(d, p[block * kBlockTokens + token]);
        sum = hn::MulAdd(weight, value[token % Kv::kPack], sum);
      }
    }
    hn::StoreU(sum, d, o + channel);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
