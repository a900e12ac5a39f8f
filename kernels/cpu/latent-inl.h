// Values of a latent cache, which are the first dims of its keys: key blocks, where the tokens of a
// dim lie side by side, brought into the form of value blocks, where the channels of a token do.
//
// The row blocks of a tile share the result, so it is made once for a range, when the first of them
// has read the keys: they are in L2 then, and memory is read once for both products. With ranges of
// 256 keys it stays there (0.5 MiB of 512 channels in float32). For 16 tokens by 16 channels it
// takes 64 shuffles of 128 bits in any type, two a cycle. Their multiply-adds take 17 cycles for
// each row of a tile, both products counted with 576 + 512 dims: of 96 rows this is 2 %, of 16 it
// is 12 %.
#if defined(ATTENTION_CPU_LATENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_LATENT_INL_H_
#undef ATTENTION_CPU_LATENT_INL_H_
#else
#define ATTENTION_CPU_LATENT_INL_H_
#endif

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// Channels [first, end) one by one.
template <typename Element>
inline void UnpackChannels(const Element* HWY_RESTRICT keys, int first, int end, bool is_paired,
                           int padded_dim_v, Element* HWY_RESTRICT values) {
  for (int channel = first; channel < end; ++channel) {
    for (int token = 0; token < kBlockTokens; ++token) {
      values[ValueIndex(is_paired, padded_dim_v, token, channel)] =
          keys[KeyIndex(is_paired, token, channel)];
    }
  }
}

#if HWY_TARGET != HWY_SCALAR

// Transposes kSize x kSize elements that fill vectors of 128 bits. Each round interleaves the rows
// of the first half with those of the second, which rotates the bits of (row, column) by one place.
template <class D, int kSize, class V = hn::Vec<D>>
HWY_INLINE void Transpose(D d, V (&rows)[kSize]) {
  HWY_UNROLL(4)
  for (int round = 1; round < kSize; round *= 2) {
    V next[kSize];
    HWY_UNROLL(16)
    for (int i = 0; i < kSize / 2; ++i) {
      next[2 * i] = hn::InterleaveLower(d, rows[i], rows[i + kSize / 2]);
      next[2 * i + 1] = hn::InterleaveUpper(d, rows[i], rows[i + kSize / 2]);
    }
    HWY_UNROLL(16)
    for (int i = 0; i < kSize; ++i) rows[i] = next[i];
  }
}

// As many channels as fill vectors; returns the first that is left.
template <typename Element>
HWY_INLINE int UnpackSingles(const Element* HWY_RESTRICT keys, int dim_v, int padded_dim_v,
                             Element* HWY_RESTRICT values) {
  using Bits = std::make_unsigned_t<
      std::conditional_t<std::is_same_v<Element, float>, std::int32_t, Element>>;
  constexpr int kSize = 16 / sizeof(Bits);
  const hn::FixedTag<Bits, kSize> d;
  const auto* from = reinterpret_cast<const Bits*>(keys);
  auto* to = reinterpret_cast<Bits*>(values);
  int channel = 0;
  for (; channel + kSize <= dim_v; channel += kSize) {
    for (int token = 0; token < kBlockTokens; token += kSize) {
      hn::Vec<decltype(d)> rows[kSize];
      HWY_UNROLL(16)
      for (int i = 0; i < kSize; ++i) {
        rows[i] = hn::LoadU(d, from + (channel + i) * kBlockTokens + token);
      }
      Transpose(d, rows);
      HWY_UNROLL(16)
      for (int i = 0; i < kSize; ++i) {
        hn::StoreU(rows[i], d, to + (token + i) * padded_dim_v + channel);
      }
    }
  }
  return channel;
}

// The same for pairs of dims, which become pairs of tokens.
HWY_INLINE int UnpackPairs(const std::uint16_t* HWY_RESTRICT keys, int dim_v, int padded_dim_v,
                           std::uint16_t* HWY_RESTRICT values) {
  const hn::FixedTag<std::uint8_t, 16> bytes;
  const hn::FixedTag<std::uint64_t, 2> d64;
  const hn::FixedTag<std::uint16_t, 8> d;
  // (a0 b0 a1 b1) of dims a, b and tokens 0, 1 becomes (a0 a1 b0 b1).
  alignas(16) constexpr std::uint8_t kOrder[16] = {0, 1, 4,  5,  2,  3,  6,  7,
                                                   8, 9, 12, 13, 10, 11, 14, 15};
  const auto order = hn::Load(bytes, kOrder);
  const auto load = [&](const std::uint16_t* from) HWY_ATTR {
    return hn::BitCast(d64, hn::TableLookupBytes(hn::BitCast(bytes, hn::LoadU(d, from)), order));
  };
  int channel = 0;
  for (; channel + 4 <= dim_v; channel += 4) {
    const std::uint16_t* from = keys + channel * kBlockTokens;
    std::uint16_t* to = values + channel * 2;
    HWY_UNROLL(4)
    for (int token = 0; token < kBlockTokens; token += 4) {
      const auto low = load(from + token * 2);
      const auto high = load(from + (kBlockTokens + token) * 2);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, low, high)), d, to + token * padded_dim_v);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, low, high)), d,
                 to + (token + 2) * padded_dim_v);
    }
  }
  return channel;
}

#endif  // HWY_TARGET != HWY_SCALAR

// Makes the value block of a key block, with the same scales if it has some. Padded channels stay
// what they were.
template <class Kv>
HWY_NOINLINE void UnpackValueBlock(const PackedLayout& layout, const void* key_block,
                                   void* value_block) {
  using Element = typename Kv::Element;
  constexpr bool kIsPaired = Kv::kPack == 2;
  const auto* keys = ElementsOf<Kv>(key_block);
  std::memcpy(value_block, key_block, Kv::kHeader);
  auto* values = reinterpret_cast<Element*>(static_cast<char*>(value_block) + Kv::kHeader);
  int channel = 0;
#if HWY_TARGET != HWY_SCALAR
  if constexpr (kIsPaired) {
    channel = UnpackPairs(keys, layout.dim_v, layout.padded_dim_v, values);
  } else {
    channel = UnpackSingles(keys, layout.dim_v, layout.padded_dim_v, values);
  }
#endif
  UnpackChannels(keys, channel, layout.dim_v, kIsPaired, layout.padded_dim_v, values);
}

// Finds the values of a range of a latent cache; those that no row block has asked for yet are
// made.
template <class Kv>
inline void UnpackValues(const PackedLayout& layout, RangeBlocks& blocks, TileScratch& scratch) {
  for (int entry = 0; entry < blocks.count; ++entry) {
    const int index = blocks.index[entry];
    char* values = scratch.values + index * layout.value_block_bytes;
    const std::uint32_t bit = 1u << index;
    if ((scratch.unpacked_values & bit) == 0) {
      UnpackValueBlock<Kv>(layout, blocks.keys()[entry], values);
      scratch.unpacked_values |= bit;
    }
    blocks.SetValues(entry, values);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
