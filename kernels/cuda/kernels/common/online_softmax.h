// The online softmax over fragments of scores, shared by the kernels on matrix instructions: those
// of mma.m16n8k16 and of wgmma.m64nNk16 hold their sums alike. Block b of 8 columns lies in
// s[b][0..3]: rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1, with g = lane / 4 and
// t = lane % 4. `half` 0 or 1 means row g or g + 8; the four lanes of a row share its maximum, and
// each has the sum of its own columns.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/scores.h"

namespace attention::cuda {

// Every block moves one place to the front; `last` comes in at the end. So a loop that is not
// unrolled can go through registers: what it needs passes through the first ones and comes around.
template <int kBlocks>
ATTENTION_DEVICE void PassThrough(float (&blocks)[kBlocks][4], const float (&last)[4]) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      blocks[block][i] = block + 1 < kBlocks ? blocks[block + 1][i] : last[i];
    }
  }
}

// Dot products become scores, minus infinity where a row does not see the key. `key_of(block, i)`
// is an element's key, `scaled(block, i, dot)` its product with all scales.
template <int kBlocks, typename KeyOf, typename Scaled>
ATTENTION_DEVICE void ModifyScores(const DeviceTask& task, const ScoreRow (&rows)[2],
                                   bool is_masked, const KeyOf& key_of, const Scaled& scaled,
                                   float (&s)[kBlocks][4]) {
  const bool has_modifiers = HasModifiers(task);
  if (!is_masked && !has_modifiers) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      for (int i = 0; i < 4; ++i) s[block][i] = scaled(block, i, s[block][i]);
    }
    return;
  }
  // One copy of the code, not one for each element.
#pragma unroll 1
  for (int block = 0; block < kBlocks; ++block) {
    float modified[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      modified[i] = ScoreOf(task, rows[i / 2], key_of(block, i), scaled(block, i, s[0][i]),
                            is_masked, has_modifiers);
    }
    PassThrough(s, modified);
  }
}

// The row's maximum so far. Its sum is scaled to it, and so must be what was added to its output:
// the result is the factor. `unit` is what turns a difference of scores into an exponent of 2.
template <int kBlocks>
ATTENTION_DEVICE float RaiseMaximum(const float (&s)[kBlocks][4], int half, float unit, float& max,
                                    float& sum) {
  float greatest = max;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    greatest = GreaterOf(greatest, s[block][2 * half]);
    greatest = GreaterOf(greatest, s[block][2 * half + 1]);
  }
  greatest = GreaterOf(greatest, ShuffleXor(greatest, 1));
  greatest = GreaterOf(greatest, ShuffleXor(greatest, 2));
  const float factor = Exp2Fast((max - OriginOf(greatest)) * unit);
  max = greatest;
  sum *= factor;
  return factor;
}

// True if a factor of the warp's rows is not 1: where no maximum rose, there is nothing to scale.
ATTENTION_DEVICE bool IsAnyScaled(float first, float second) {
  return AnyOfWarp(first != 1.0f || second != 1.0f);
}

template <int kBlocks>
ATTENTION_DEVICE void ScaleRow(float (&o)[kBlocks][4], int half, float factor) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    o[block][2 * half] *= factor;
    o[block][2 * half + 1] *= factor;
  }
}

// Rows whose maximum is less than this, as an exponent of 2, are near: their exponents are one
// fused multiply-add, relative to the maximum's product as it was rounded, by at most 2^-15. Where
// a maximum rises between two tiles their weights differ by twice that from what they should be, a
// tenth of what rounding them to 16 bits does. Far ones subtract first, which is right for every
// finite score: of 2^31 and more the rounded product would be off by more than an exponent can be.
inline constexpr float kNearExponents = 1024.0f;
ATTENTION_DEVICE bool IsNear(float shift) {
  return shift < kNearExponents && -shift < kNearExponents;
}

// `exponent_of(half, score)`.
template <int kBlocks, typename ExponentOf>
ATTENTION_DEVICE void ReplaceByPowers(float (&s)[kBlocks][4], const ExponentOf& exponent_of,
                                      float (&sum)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        s[block][i] = Exp2Fast(exponent_of(half, s[block][i]));
        sum[half] += s[block][i];
      }
    }
  }
}

// Scores become weights, and are added to the rows' sums. A row's own maximum alone decides about
// its bits; the warp only skips a choice that all of its rows make alike.
template <int kBlocks>
ATTENTION_DEVICE void Exponentiate(float (&s)[kBlocks][4], float unit, const float (&max)[2],
                                   float (&sum)[2]) {
  const float origin[2] = {OriginOf(max[0]), OriginOf(max[1])};
  const float shift[2] = {-origin[0] * unit, -origin[1] * unit};
  const bool is_near[2] = {IsNear(shift[0]), IsNear(shift[1])};
  if (!AnyOfWarp(!is_near[0] || !is_near[1])) {
    ReplaceByPowers(
        s, [&](int half, float score) { return Fma(score, unit, shift[half]); }, sum);
    return;
  }
  ReplaceByPowers(
      s,
      [&](int half, float score) {
        return is_near[half] ? Fma(score, unit, shift[half]) : (score - origin[half]) * unit;
      },
      sum);
}

// The lanes' sums of a row's columns, added.
ATTENTION_DEVICE float SumOfLanes(float sum) {
  sum += ShuffleXor(sum, 1);
  return sum + ShuffleXor(sum, 2);
}

// --- Values that are not finite ---

// Bit j: a row sees key j of the fragments' keys. Words are named by unrolled loops alone, so that
// they stay in registers.
template <int kKeys>
struct SeenKeys {
  static constexpr int kWords = (kKeys + 31) / 32;
  std::uint32_t words[kWords];
};

template <int kBlocks>
ATTENTION_DEVICE SeenKeys<8 * kBlocks> FindSeenKeys(const float (&s)[kBlocks][4], int half) {
  SeenKeys<8 * kBlocks> seen;
#pragma unroll
  for (int word = 0; word < SeenKeys<8 * kBlocks>::kWords; ++word) {
    std::uint32_t bits = 0;
#pragma unroll
    for (int block = 4 * word; block < Min(kBlocks, 4 * word + 4); ++block) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = block * 8 + LaneIndex() % 4 * 2 + i;
        bits |= s[block][2 * half + i] == MinusInfinity() ? 0u : 1u << (key % 32);
      }
    }
    bits |= ShuffleXor(bits, 1);
    bits |= ShuffleXor(bits, 2);
    seen.words[word] = bits;
  }
  return seen;
}

// Adds those elements of pairs that are not finite to the sums of the rows that see their keys.
template <DType kType, typename PairOf>
ATTENTION_DEVICE void AddNonFinitePairs(std::uint32_t first, std::uint32_t second,
                                        const PairOf& pair_of, float (&sums)[4]) {
#pragma unroll 1
  for (int key = 0; key < 32; ++key) {
    const std::uint32_t is_seen[2] = {first >> key & 1u, second >> key & 1u};
    if ((is_seen[0] | is_seen[1]) == 0) continue;
    const std::uint32_t pair = pair_of(key);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t element = (pair >> (16 * i)) & 0xffffu;
      if (!IsPairNonFinite<kType>(element)) continue;
      const float value = kType == DType::kBFloat16
                              ? BFloatToFloat(static_cast<std::uint16_t>(element))
                              : HalfToFloat(static_cast<std::uint16_t>(element));
      if (is_seen[0] != 0) sums[i] += value;
      if (is_seen[1] != 0) sums[2 + i] += value;
    }
  }
}

// Adds the values that are not finite, of the keys that a row sees. `pair_of(key, block)` gives the
// lane's two elements of a block of channels.
template <DType kType, int kBlocks, int kKeys, typename PairOf>
ATTENTION_DEVICE void AddNonFiniteValues(const SeenKeys<kKeys>& first,
                                         const SeenKeys<kKeys>& second, const PairOf& pair_of,
                                         float (&o)[kBlocks][4]) {
#pragma unroll 1
  for (int block = 0; block < kBlocks; ++block) {
    float sums[4] = {o[0][0], o[0][1], o[0][2], o[0][3]};
#pragma unroll
    for (int word = 0; word < SeenKeys<kKeys>::kWords; ++word) {
      AddNonFinitePairs<kType>(
          first.words[word], second.words[word],
          [&](int key) { return pair_of(32 * word + key, block); }, sums);
    }
    PassThrough(o, sums);
  }
}

}  // namespace attention::cuda
