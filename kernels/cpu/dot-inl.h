// The micro-kernels with the bfloat16 dot product of AVX-512 (vdpbf16ps): a lane adds two products
// to a float32, twice the arithmetic of a multiply-add. Packed bfloat16 blocks are already the
// pairs that it reads (packed_layout.h); queries and weights are rounded to pairs too.
//
// Its bits: an instruction is two float32 multiply-adds, the odd element first, subnormals taken as
// zero. So a pair whose odd product is 0 adds what the even one alone would, and
// what docs/design/batch-invariance.md says of chains holds.
#if defined(ATTENTION_CPU_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_DOT_INL_H_
#undef ATTENTION_CPU_DOT_INL_H_
#else
#define ATTENTION_CPU_DOT_INL_H_
#endif

#include <cstring>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3
// clang forgets what the namespace's target has when a function names one of its own.
#if defined(__clang__)
#define ATTENTION_CPU_DOT __attribute__((target(HWY_TARGET_STR ",avx512bf16")))
#else
#define ATTENTION_CPU_DOT __attribute__((target("avx512bf16")))
#endif
// GCC 12 takes functions that convert a row in place for ones without effect and drops their calls.
#if defined(__clang__)
#define ATTENTION_CPU_DOT_IN_PLACE ATTENTION_CPU_DOT HWY_NOINLINE
#else
#define ATTENTION_CPU_DOT_IN_PLACE ATTENTION_CPU_DOT __attribute__((noipa))
#endif

// Adds the products of kRows broadcast pairs and kVecs vectors of pairs; `keep` clears the odd
// element of pairs whose second half was never written.
template <int kRows, int kVecs>
ATTENTION_CPU_DOT HWY_INLINE void AccumulatePairs(const std::uint32_t* HWY_RESTRICT pairs,
                                                  std::size_t row_stride,
                                                  const std::uint16_t* const (&values)[kVecs],
                                                  std::uint32_t keep, Vec (&sum)[kRows][kVecs]) {
  __m512i value[kVecs];
  HWY_UNROLL(16)
  for (int v = 0; v < kVecs; ++v) {
    value[v] = _mm512_loadu_si512(values[v]);
    if (keep != ~0u) value[v] = _mm512_and_si512(value[v], _mm512_set1_epi32(keep));
  }
  HWY_UNROLL(16)
  for (int row = 0; row < kRows; ++row) {
    const __m512i pair = _mm512_set1_epi32(pairs[row * row_stride] & keep);
    HWY_UNROLL(16)
    for (int v = 0; v < kVecs; ++v) {
      sum[row][v].raw = _mm512_dpbf16_ps(sum[row][v].raw, (__m512bh)pair, (__m512bh)value[v]);
    }
  }
}

inline constexpr std::uint32_t kBothHalves = ~0u;
inline constexpr std::uint32_t kFirstHalf = 0xffffu;

template <int kRows, int kVecs>
HWY_INLINE void ClearSums(Vec (&sum)[kRows][kVecs]) {
  HWY_UNROLL(16)
  for (int row = 0; row < kRows; ++row) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVecs; ++v) sum[row][v] = hn::Zero(F32());
  }
}

// See ScoreTile; q is [ceil(dim / 2)][kRowBlock] pairs.
template <int kRows, int kBlocks, int kAhead>
ATTENTION_CPU_DOT HWY_NOINLINE void DotScoreTile(const std::uint32_t* HWY_RESTRICT q,
                                                 const void* const* HWY_RESTRICT key_blocks,
                                                 std::size_t dim_qk, AheadList& ahead,
                                                 float* HWY_RESTRICT scores) {
  const std::uint16_t* keys[kBlocks];
  for (int block = 0; block < kBlocks; ++block) {
    keys[block] = ElementsOf<BFloat16Kv>(key_blocks[block]);
  }
  Vec sum[kRows][kBlocks];
  ClearSums(sum);
  AheadCursor cursor = ahead.cursor();
  for (std::size_t pair = 0; pair < dim_qk / 2; ++pair) {
    AccumulatePairs<kRows, kBlocks>(q, 1, keys, kBothHalves, sum);
    q += kRowBlock;
    HWY_UNROLL(16)
    for (int block = 0; block < kBlocks; ++block) keys[block] += 2 * kBlockTokens;
    HWY_UNROLL(16)
    for (int i = 0; i < kAhead; ++i) cursor.Step();
  }
  if constexpr (kAhead > 0) ahead.set_cursor(cursor);
  if (dim_qk % 2 != 0) AccumulatePairs<kRows, kBlocks>(q, 1, keys, kFirstHalf, sum);
  HWY_UNROLL(16)
  for (int row = 0; row < kRows; ++row) {
    HWY_UNROLL(16)
    for (int v = 0; v < kBlocks; ++v) {
      hn::StoreU(sum[row][v], F32(), scores + row * kScoreStride + v * kLanes);
    }
  }
}

// See ValueTile; p is [row][kScoreStride] pairs.
template <int kRows, int kVecs, int kAhead>
ATTENTION_CPU_DOT HWY_NOINLINE void DotValueTile(const std::uint32_t* HWY_RESTRICT p,
                                                 const ValueBlocks& values, int channel,
                                                 AheadList& ahead, float* HWY_RESTRICT o) {
  const std::size_t step = static_cast<std::size_t>(values.padded_dim_v) * 2;
  Vec sum[kRows][kVecs];
  ClearSums(sum);
  AheadCursor cursor = ahead.cursor();
  for (int block = 0; block < values.num_blocks; ++block) {
    const std::uint16_t* value[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      value[v] = ElementsOf<BFloat16Kv>(values.blocks[block]) + (channel + v * kLanes) * 2;
    }
    const std::uint32_t* weights = p + block * kBlockTokens / 2;
    const int tokens = values.TokensOf(block);
    for (int pair = 0; pair < tokens / 2; ++pair) {
      AccumulatePairs<kRows, kVecs>(weights + pair, kScoreStride, value, kBothHalves, sum);
      HWY_UNROLL(16)
      for (int v = 0; v < kVecs; ++v) value[v] += step;
      HWY_UNROLL(16)
      for (int i = 0; i < kAhead; ++i) cursor.Step();
    }
    if (tokens % 2 != 0) {
      AccumulatePairs<kRows, kVecs>(weights + tokens / 2, kScoreStride, value, kFirstHalf, sum);
    }
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

// Replaces the weights of one row by bfloat16, pairs of keys side by side, in the first half of its
// room.
ATTENTION_CPU_DOT_IN_PLACE inline void PairWeights(int num_blocks, float* row) {
  auto* pairs = reinterpret_cast<std::uint16_t*>(row);
  for (int block = 0; block < num_blocks; ++block) {
    const __m256bh narrow = _mm512_cvtneps_pbh(_mm512_load_ps(row + block * kBlockTokens));
    std::memcpy(pairs + block * kBlockTokens, &narrow, sizeof(narrow));
  }
}

// Rounds the weights of one row to bfloat16 in place.
ATTENTION_CPU_DOT_IN_PLACE inline void RoundWeights(int num_blocks, float* row) {
  for (float* p = row; p < row + num_blocks * kBlockTokens; p += kBlockTokens) {
    const __m256bh narrow = _mm512_cvtneps_pbh(_mm512_load_ps(p));
    _mm512_store_si512(p, _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)narrow), 16));
  }
}

// Replaces widened queries [dim][kRowBlock], which bfloat16 holds exactly, by pairs of dims
// [ceil(dim / 2)][kRowBlock].
inline void PairQueries(int dim_qk, float* q) {
  auto* bits = reinterpret_cast<std::uint32_t*>(q);
  for (int pair = 0; pair < (dim_qk + 1) / 2; ++pair) {
    for (int row = 0; row < kRowBlock; ++row) {
      const std::uint32_t even = bits[2 * pair * kRowBlock + row];
      const std::uint32_t odd = bits[(2 * pair + 1) * kRowBlock + row];
      bits[pair * kRowBlock + row] = even >> 16 | (odd & 0xffff0000u);
    }
  }
}

// bfloat16 keys, values, queries and weights. Named through the type, so that other instruction
// sets need not have them.
struct BFloat16DotKv : BFloat16Kv {
  static constexpr bool kIsDot = true;

  template <int kRows, int kBlocks, int kAhead>
  static void ScoreTile(const float* q, const void* const* key_blocks, std::size_t dim_qk,
                        AheadList& ahead, float* scores) {
    DotScoreTile<kRows, kBlocks, kAhead>(reinterpret_cast<const std::uint32_t*>(q), key_blocks,
                                         dim_qk, ahead, scores);
  }
  template <int kRows, int kVecs, int kAhead>
  static void ValueTile(const float* p, const ValueBlocks& values, int channel, AheadList& ahead,
                        float* o) {
    DotValueTile<kRows, kVecs, kAhead>(reinterpret_cast<const std::uint32_t*>(p), values, channel,
                                       ahead, o);
  }
  static void PairQueries(int dim_qk, float* q) { HWY_NAMESPACE::PairQueries(dim_qk, q); }
  static void PairWeights(int num_blocks, float* row) {
    HWY_NAMESPACE::PairWeights(num_blocks, row);
  }
  static void RoundWeights(int num_blocks, float* row) {
    HWY_NAMESPACE::RoundWeights(num_blocks, row);
  }
};
#endif  // HWY_TARGET == HWY_AVX3

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
