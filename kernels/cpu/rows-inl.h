// In and out of a tile: which keys its rows see, their queries widened into the form of the score
// kernel, the blocks of a range with their addresses, and finished rows written to the caller's
// memory.
#if defined(ATTENTION_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_ROWS_INL_H_
#undef ATTENTION_CPU_ROWS_INL_H_
#else
#define ATTENTION_CPU_ROWS_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cpu/simd-inl.h"
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

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
