// Scores: <q, k> of a few rows and a list of key blocks.
//
// A micro-kernel holds kRows x kBlocks blocks of scores in registers and walks down the dims: one
// load per key vector, one broadcast per row, one multiply-add per pair. Every score is a single
// chain of multiply-adds in its own lane, so its bits depend neither on the rows nor on the blocks
// that are computed beside it.
#if defined(ATTENTION_CPU_QK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_QK_INL_H_
#undef ATTENTION_CPU_QK_INL_H_
#else
#define ATTENTION_CPU_QK_INL_H_
#endif

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// Adds dims [step, step + kDims) of kBlocks x kRows products. `q` points at the step's row values.
template <class Kv, int kDims, int kRows, int kBlocks>
HWY_INLINE void AccumulateScores(const float* HWY_RESTRICT q,
                                 const typename Kv::Element* const (&keys)[kBlocks],
                                 std::size_t step, Vec (&sum)[kRows][kBlocks * kBlockVecs]) {
  constexpr int kVecs = kBlocks * kBlockVecs;
  Vec key[kVecs][Kv::kPack];
  HWY_UNROLL(16)
  for (int v = 0; v < kVecs; ++v) {
    const std::size_t offset = step * kBlockTokens + (v % kBlockVecs) * kLanes;
    Kv::Load(keys[v / kBlockVecs] + offset * Kv::kPack, key[v]);
  }
  HWY_UNROLL(2)
  for (int dim = 0; dim < kDims; ++dim) {
    HWY_UNROLL(16)
    for (int row = 0; row < kRows; ++row) {
      const Vec broadcast = hn::Set(F32(), q[dim * kRowBlock + row]);
      HWY_UNROLL(16)
      for (int v = 0; v < kVecs; ++v) {
        sum[row][v] = hn::MulAdd(broadcast, key[v][dim], sum[row][v]);
      }
    }
  }
}

// scores[row][16 * block] for kRows rows and kBlocks blocks. Asks for kAhead lines a step.
template <class Kv, int kRows, int kBlocks, int kAhead>
HWY_NOINLINE void ScoreTile(const float* HWY_RESTRICT q, const void* const* HWY_RESTRICT key_blocks,
                            std::size_t dim_qk, AheadList& ahead, float* HWY_RESTRICT scores) {
  using Element = typename Kv::Element;
  constexpr int kVecs = kBlocks * kBlockVecs;
  const Element* keys[kBlocks];
  for (int block = 0; block < kBlocks; ++block) {
    keys[block] = ElementsOf<Kv>(key_blocks[block]);
  }
  Vec sum[kRows][kVecs];
  HWY_UNROLL(16)
  for (int row = 0; row < kRows; ++row) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVecs; ++v) sum[row][v] = hn::Zero(F32());
  }
  const std::size_t steps = dim_qk / Kv::kPack;
  AheadCursor cursor = ahead.cursor();
  for (std::size_t step = 0; step < steps; ++step) {
    AccumulateScores<Kv, Kv::kPack, kRows, kBlocks>(q, keys, step, sum);
    q += Kv::kPack * kRowBlock;
    HWY_UNROLL(16)
    for (int i = 0; i < kAhead; ++i) cursor.Step();
  }
  if constexpr (kAhead > 0) ahead.set_cursor(cursor);
  // The second dim of an odd last pair is padding.
  if (dim_qk % Kv::kPack != 0) AccumulateScores<Kv, 1, kRows, kBlocks>(q, keys, steps, sum);
  if constexpr (Kv::kHeader > 0) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVecs; ++v) {
      const float* scales = ScalesOf(key_blocks[v / kBlockVecs]) + v % kBlockVecs * kLanes;
      const Vec scale = hn::Load(F32(), scales);
      HWY_UNROLL(16)
      for (int row = 0; row < kRows; ++row) sum[row][v] = Scaled<Kv>(sum[row][v], scale);
    }
  }
  HWY_UNROLL(16)
  for (int row = 0; row < kRows; ++row) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVecs; ++v) {
      hn::StoreU(sum[row][v], F32(), scores + row * kScoreStride + v * kLanes);
    }
  }
}

// Few rows leave registers for more blocks, which hide the latency of the multiply-add (4 cycles at
// two a cycle: 8 sums at least).
template <int kRows>
constexpr int ScoreBlocksPerTile() {
  if (!kIsWide)
    return kRows == 1 ? (kBlockVecs == 2 ? 4 : 1) : kRows == 2 && kBlockVecs == 2 ? 2 : 1;
  return kRows >= 8 ? 2 : kRows == 4 ? 4 : 8;
}

// Calls function.operator()<lines>() with the lines to ask for in each step: none, one if the list
// is sparse, else as many as a step reads.
template <int kRows, std::size_t kStepBytes, class Function>
HWY_INLINE void WithAhead(const AheadList& ahead, const Function& function) {
  if (ahead.empty()) {
    function.template operator()<0>();
  } else if (kRows >= 6 && ahead.is_sparse()) {
    function.template operator()<1>();
  } else {
    function.template operator()<static_cast<int>(CeilDiv(kStepBytes, kCacheLine))>();
  }
}

template <class Kv, int kRows, int kBlocks>
HWY_INLINE void ScoreBlocks(const float* HWY_RESTRICT q, const void* const* HWY_RESTRICT key_blocks,
                            int num_blocks, std::size_t dim_qk, AheadList& ahead,
                            float* HWY_RESTRICT scores) {
  int block = 0;
  for (; block + kBlocks <= num_blocks; block += kBlocks) {
    constexpr std::size_t kStepBytes =
        kBlocks * kBlockTokens * Kv::kPack * sizeof(typename Kv::Element);
    WithAhead<kRows, kStepBytes>(ahead, [&]<int kAhead>() HWY_ATTR {
      float* tile = scores + block * kBlockTokens;
      if constexpr (Kv::kIsDot) {
        Kv::template ScoreTile<kRows, kBlocks, kAhead>(q, key_blocks + block, dim_qk, ahead, tile);
      } else {
        ScoreTile<Kv, kRows, kBlocks, kAhead>(q, key_blocks + block, dim_qk, ahead, tile);
      }
    });
  }
  if constexpr (kBlocks > 1) {
    if (block < num_blocks) {
      ScoreBlocks<Kv, kRows, kBlocks / 2>(q, key_blocks + block, num_blocks - block, dim_qk, ahead,
                                          scores + block * kBlockTokens);
    }
  }
}

// Calls function.template Run<kRows>(first_row) with compiled sizes until `rows` rows are covered;
// the last call may run over into the padding rows of the block.
template <class Function>
HWY_INLINE void ForRowGroups(int rows, const Function& function) {
  int row = 0;
  if constexpr (kIsWide) {
    if (rows > 8) {
      function.template Run<12>(0);
    } else if (rows > 4) {
      function.template Run<8>(0);
    } else if (rows > 2) {
      function.template Run<4>(0);
    } else if (rows == 2) {
      function.template Run<2>(0);
    } else {
      function.template Run<1>(0);
    }
  } else if constexpr (kBlockVecs == 2) {
    for (; rows - row > 4; row += 6) function.template Run<6>(row);
    if (rows - row > 2) {
      function.template Run<4>(row);
    } else if (rows - row == 2) {
      function.template Run<2>(row);
    } else if (rows - row == 1) {
      function.template Run<1>(row);
    }
  } else {
    for (; rows - row > 1; row += 2) function.template Run<2>(row);
    if (row < rows) function.template Run<1>(row);
  }
}

template <class Kv>
struct ScoreFunction {
  const float* q;                 // [dim][kRowBlock]
  const void* const* key_blocks;  // [num_blocks]
  int num_blocks;
  std::size_t dim_qk;
  AheadList& ahead;
  float* scores;  // [row][kScoreStride]

  template <int kRows>
  void Run(int row) const {
    ScoreBlocks<Kv, kRows, ScoreBlocksPerTile<kRows>()>(q + row, key_blocks, num_blocks, dim_qk,
                                                        ahead, scores + row * kScoreStride);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
