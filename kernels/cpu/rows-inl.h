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
#include <limits>
#include <numbers>

#include "kernels/cpu/convert-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/cpu/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// One row block of a tile, or the rows of it that belong to a stretch.
struct RowBlock {
  int index = 0;  // in the tile
  int rows = 0;   // 1 to kRowBlock
  const RowSpan* spans = nullptr;
  int first = 0;  // the first of them, in the block

  std::uint16_t bits() const { return static_cast<std::uint16_t>(((1u << rows) - 1) << first); }
};

inline RowBlock RowBlockOf(const WorkItem& item, const TileScratch& scratch, int index) {
  const std::int64_t rows = item.row_end - item.row_begin - index * kRowBlock;
  return {index, static_cast<int>(std::min<std::int64_t>(rows, kRowBlock)),
          scratch.rows + index * kRowBlock};
}

// Calls function(planned, row_begin, row_end) for the rows of each task of an item, in their order.
template <class Function>
HWY_INLINE void ForTaskRows(const PlannedTask& planned, const WorkItem& item,
                            const Function& function) {
  if (item.joined == nullptr) return function(planned, item.row_begin, item.row_end);
  for (const JoinedRows& rows : item.joined->rows) {
    function(*rows.planned, rows.row_begin, rows.row_end);
  }
}

inline RowSpan SpanOf(const PlannedTask& planned, int kv_head, std::int64_t row) {
  const int group = planned.task.params.group_size();
  const std::int64_t query = row / group;
  return {&planned, query, kv_head * group + static_cast<int>(row % group),
          VisibleKeysOf(planned.task, planned.task.position(query))};
}

// Fills the spans of rows of one task, and returns where the next one's go.
inline RowSpan* FindTaskSpans(const PlannedTask& planned, int kv_head, std::int64_t row_begin,
                              std::int64_t row_end, RowSpan* spans) {
  const int group = planned.task.params.group_size();
  const int first_head = kv_head * group;
  std::int64_t query = row_begin / group;
  int head = static_cast<int>(row_begin % group);
  VisibleKeys keys = VisibleKeysOf(planned.task, planned.task.position(query));
  for (std::int64_t row = row_begin; row < row_end; ++row, ++spans) {
    spans->planned = &planned;
    spans->query = query;
    spans->q_head = first_head + head;
    spans->keys = keys;
    if (++head < group || row + 1 == row_end) continue;
    head = 0;
    keys = VisibleKeysOf(planned.task, planned.task.position(++query));
  }
  return spans;
}

// Fills scratch.rows.
inline void FindSpans(const PlannedTask& planned, const WorkItem& item, TileScratch& scratch) {
  RowSpan* spans = scratch.rows;
  ForTaskRows(planned, item, [&](const PlannedTask& task, std::int64_t begin, std::int64_t end) {
    spans = FindTaskSpans(task, item.kv_head, begin, end, spans);
  });
}

inline const char* RowData(const RowsView& rows, std::int64_t row, int head) {
  return static_cast<const char*>(rows.data) +
         (row * rows.row_stride + head * rows.head_stride) *
             static_cast<std::int64_t>(DTypeBytes(rows.dtype));
}

inline const char* QueryData(const RowsView& q, const RowSpan& span) {
  return RowData(q, span.query, span.q_head);
}

// Four rows of q as the bits of floats; those past the block's last are 0.
struct WideRows {
  alignas(64) float floats[4][kMaxHeadDimQk];
  const std::uint32_t* bits[4];

  HWY_INLINE void Load(const RowBlock& block, int first, int dim_qk) {
    for (int i = 0; i < 4; ++i) {
      bits[i] = reinterpret_cast<const std::uint32_t*>(floats[i]);
      if (first + i >= block.rows) {
        std::fill_n(floats[i], dim_qk, 0.0f);
        continue;
      }
      const RowsView& q = block.spans[first + i].planned->task.q;
      const char* data = QueryData(q, block.spans[first + i]);
      if (q.dtype == DType::kFloat32 && dim_qk % 4 == 0) {
        bits[i] = reinterpret_cast<const std::uint32_t*>(data);
      } else {
        WidenRow(data, q.dtype, dim_qk, floats[i]);
      }
    }
  }
};

// Widens the rows of q to float, [dim][12 rows]; missing rows of the last block become 0.
template <class Kv>
inline void LoadQueries(const PlannedTask& planned, const WorkItem& item, TileScratch& scratch) {
  const int dim_qk = planned.layout.dim_qk;
  WideRows wide;
  for (int index = 0; index < NumRowBlocks(item); ++index) {
    const RowBlock block = RowBlockOf(item, scratch, index);
    auto* out = reinterpret_cast<std::uint32_t*>(scratch.q[index]);
    for (int first = 0; first < block.rows; first += 4) {
      wide.Load(block, first, dim_qk);
      // The last step may run over into dims that nobody reads; scratch.q has room for them.
      for (int dim = 0; dim < dim_qk; dim += 4) {
        Transpose4x4(wide.bits[0] + dim, wide.bits[1] + dim, wide.bits[2] + dim, wide.bits[3] + dim,
                     out + dim * kRowBlock + first, kRowBlock);
      }
    }
    if constexpr (Kv::kIsDot) Kv::PairQueries(dim_qk, scratch.q[index]);
  }
}

// Marks the blocks of [begin, end) that lie in the range and returns their bits.
HWY_INLINE std::uint32_t BlockBits(const PlannedTask& planned, std::int64_t first_key,
                                   std::int64_t begin, std::int64_t end, std::int64_t* last_end) {
  const std::int64_t lo = std::max<std::int64_t>(begin - first_key, 0);
  const std::int64_t hi = std::min<std::int64_t>(end - first_key, planned.range_tokens);
  if (lo >= hi) return 0;
  *last_end = std::max(*last_end, hi);
  const int first = static_cast<int>(lo / kBlockTokens);
  const int count = static_cast<int>(CeilDiv<std::int64_t>(hi, kBlockTokens)) - first;
  return (count == 32 ? ~0u : (1u << count) - 1) << first;
}

// The blocks of the range that some row sees. Page table entries of other blocks are not read.
// Values of a latent cache are found later, see UnpackValues.
inline void FindBlocks(const PlannedTask& planned, int kv_head, const RowBlock& rows,
                       std::int64_t range, RangeBlocks* blocks) {
  blocks->first_key = range * planned.range_tokens;
  std::uint32_t needed = 0;
  std::int64_t end = 0;
  for (int row = 0; row < rows.rows; ++row) {
    const VisibleKeys& keys = rows.spans[row].keys;
    const std::int64_t kv_begin = rows.spans[row].planned->task.kv_begin;
    needed |= BlockBits(planned, blocks->first_key, keys.begin, keys.end, &end);
    needed |= BlockBits(planned, blocks->first_key, kv_begin, keys.sink_end, &end);
  }
  blocks->count = std::popcount(needed);
  const PackedLayout& layout = planned.layout;
  // The page is looked up once for each page, not for each block: divisions are slow.
  const std::int64_t first_block = range * (planned.range_tokens / kBlockTokens);
  std::int64_t block_in_page = first_block % layout.blocks_per_page;
  std::int64_t page_index = first_block / layout.blocks_per_page;
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
    blocks->blocks[blocks->count + entry] =
        layout.is_latent ? nullptr : page + layout.value_offset(kv_head, block_in_page);
    blocks->last_tokens =
        static_cast<int>(std::min<std::int64_t>(kBlockTokens, end - index * kBlockTokens));
  }
}

// Writes factor * o as `dtype` to unaligned memory. Adding 0 turns -0 into +0; see pv-inl.h.
inline void StoreScaled(const float* HWY_RESTRICT o, float factor, int dim_v, DType dtype,
                        char* HWY_RESTRICT out) {
  const F32 d;
  const Vec scale = hn::Set(d, factor);
  const auto scaled = [&](int channel) {
    return hn::MulAdd(hn::Load(d, o + channel), scale, hn::Zero(d));
  };
  if (kLanes > 1 && dtype == DType::kFloat32 && dim_v % kLanes == 0) {
    auto* floats = reinterpret_cast<float*>(out);
    for (int channel = 0; channel < dim_v; channel += kLanes) {
      hn::StoreU(scaled(channel), d, floats + channel);
    }
    return;
  }
  alignas(64) float row[kMaxHeadDimV];
  for (int channel = 0; channel < dim_v; channel += kLanes) {
    hn::Store(scaled(channel), d, row + channel);
  }
  NarrowRow(row, dim_v, dtype, out);
}

inline char* OutputData(const MutableRowsView& o, const RowSpan& span) {
  return static_cast<char*>(o.data) + (span.query * o.row_stride + span.q_head * o.head_stride) *
                                          static_cast<std::int64_t>(DTypeBytes(o.dtype));
}

// Part of the bytes that a range reads, in the order of reading.
struct RangePart {
  std::size_t begin = 0;
  std::size_t end = std::numeric_limits<std::size_t>::max();
};

// Lists the keys and values of a range that the rows between two spans see.
inline void AddRange(const PlannedTask& planned, int kv_head, const RowSpan& first,
                     const RowSpan& last, std::int64_t range, const RangePart& part,
                     AheadList& ahead) {
  const RowSpan spans[2] = {first, last};
  RangeBlocks blocks;
  FindBlocks(planned, kv_head, {.index = 0, .rows = 2, .spans = spans}, range, &blocks);
  std::size_t at = 0;
  const int count = planned.layout.is_latent ? blocks.count : 2 * blocks.count;
  for (int i = 0; i < count && at < part.end; ++i) {
    const std::size_t bytes =
        i < blocks.count ? planned.layout.key_block_bytes : planned.layout.value_block_bytes;
    if (at >= part.begin) ahead.Add(blocks.blocks[i], bytes);
    at += bytes;
  }
}

// The part of a range that should be there when it begins.
inline RangePart StartOf(const PackedLayout& layout, const WorkItem& item) {
  return NumRowBlocks(item) == 1 ? RangePart{.end = AheadBytesOf(layout)} : RangePart{};
}

// Lists what a range of a stretch reads first.
inline void AddRangeStart(const WorkItem& item, const Stretch& stretch, const RowSpan* rows,
                          std::int64_t range, AheadList& ahead) {
  AddRange(*stretch.planned, item.kv_head, rows[stretch.row_begin], rows[stretch.row_end - 1],
           range, StartOf(stretch.planned->layout, item), ahead);
}

// Lists the rest of a range that is about to begin.
inline void AddRangeRest(const WorkItem& item, const Stretch& stretch, const RowSpan* rows,
                         std::int64_t range, AheadList& ahead) {
  if (NumRowBlocks(item) > 1) return;
  AddRange(*stretch.planned, item.kv_head, rows[stretch.row_begin], rows[stretch.row_end - 1],
           range, {.begin = AheadBytesOf(stretch.planned->layout)}, ahead);
}

// Lists the keys and values that are about to be packed.
inline void AddSourceRows(const KvAppendTask& append, int kv_head, AheadList& ahead) {
  const KvGeometry& geometry = append.geometry;
  const std::size_t k_bytes = geometry.head_dim_qk * DTypeBytes(append.k.dtype);
  const std::size_t v_bytes = geometry.head_dim_v * DTypeBytes(append.v.dtype);
  const std::int64_t rows = std::min<std::int64_t>(append.num_tokens, AheadList::kMaxChunks);
  for (std::int64_t row = 0; row < rows; ++row) {
    ahead.Add(RowData(append.k, row, kv_head), k_bytes);
    if (!geometry.value_is_key_prefix) ahead.Add(RowData(append.v, row, kv_head), v_bytes);
  }
}

inline void AddQueries(const PlannedTask& planned, const WorkItem& item, AheadList& ahead) {
  const auto add = [&](const PlannedTask& rows, std::int64_t begin, std::int64_t end) {
    const AttentionTask& task = rows.task;
    const int group = task.params.group_size();
    const std::size_t bytes = task.params.head_dim_qk * DTypeBytes(task.q.dtype);
    std::int64_t query = begin / group;
    int head = static_cast<int>(begin % group);
    for (std::int64_t row = begin; row < end; ++row) {
      ahead.Add(RowData(task.q, query, item.kv_head * group + head), bytes);
      if (++head == group) {
        head = 0;
        ++query;
      }
    }
  };
  ForTaskRows(planned, item, add);
}

// Lists what an item that has not begun reads first.
inline void AddFirstRange(const PlannedTask& planned, const WorkItem& item, AheadList& ahead) {
  std::int64_t first = item.row_begin, last = item.row_end - 1;
  if (item.joined != nullptr) {
    first = item.joined->rows.front().row_begin;
    last = item.joined->rows.front().row_end - 1;
  }
  AddRange(planned, item.kv_head, SpanOf(planned, item.kv_head, first),
           SpanOf(planned, item.kv_head, last), item.range_begin, StartOf(planned.layout, item),
           ahead);
}

// Lists what the next item reads first: queries, keys and values. Not those of `range`, if it reads
// them too: they are in the cache.
inline void AddItem(const NextItem& next, const PlannedTask& planned, const WorkItem& item,
                    std::int64_t range, AheadList& ahead) {
  if (next.item == nullptr) return;
  AddQueries(*next.task, *next.item, ahead);
  if (next.append != nullptr) return AddSourceRows(*next.append, next.item->kv_head, ahead);
  const bool is_same = next.task->pages == planned.pages && next.item->kv_head == item.kv_head &&
                       next.item->range_begin == range;
  if (is_same || next.item->range_begin == next.item->range_end) return;
  AddFirstRange(*next.task, *next.item, ahead);
}

// Lists where the item's rows will be written.
inline void AddOutputs(const PackedLayout& layout, const WorkItem& item, const RowSpan* spans,
                       AheadList& ahead) {
  for (std::int64_t row = 0; row < item.row_end - item.row_begin; ++row) {
    const MutableRowsView& o = spans[row].planned->task.o;
    ahead.Add(OutputData(o, spans[row]), layout.dim_v * DTypeBytes(o.dtype));
  }
}

// The natural logarithm of what the powers of a row with this maximum are relative to. Products of
// two floats are exact.
inline double LogOrigin(const PlannedTask& planned, float max) {
  if (max == kNegInf) return 0.0;
  const float origin = max * planned.exponent_scale;
  if (IsNear(origin)) return origin * std::numbers::ln2;
  return max * static_cast<double>(planned.score_scale());
}

// The sum of a row's powers and of its head's sink logit, if there is one.
struct Denominator {
  double sum;
  double log_origin;  // of what `sum` is relative to
  double share;       // makes powers relative to the same
};

inline Denominator DenominatorOf(const PlannedTask& planned, int q_head, float max, float sum) {
  const double origin = LogOrigin(planned, max);
  if (planned.task.sink_logits == nullptr) return {sum, origin, 1.0};
  const double sink = planned.task.sink_logits[q_head];
  const double greatest = max == kNegInf ? sink : std::max(origin, sink);
  const double shift = greatest == kNegInf ? 0.0 : greatest;
  const double share = max == kNegInf ? 1.0 : std::exp(origin - shift);
  return {sum * share + std::exp(sink - shift), shift, share};
}

// Makes weights of a row's powers; 0 if there are none.
inline float WeightFactor(const PlannedTask& planned, int q_head, float max, float sum) {
  // Multiplying by the reciprocal costs half an ulp; dividing each output would cost 5 % of a
  // prompt of 512 tokens.
  if (planned.task.sink_logits == nullptr) return sum == 0.0f ? 0.0f : 1.0f / sum;
  const Denominator total = DenominatorOf(planned, q_head, max, sum);
  return total.sum == 0 ? 0.0f : static_cast<float>(total.share / total.sum);
}

inline float LogSumExp(const PlannedTask& planned, int q_head, float max, float sum) {
  const Denominator total = DenominatorOf(planned, q_head, max, sum);
  return total.sum == 0 ? kNegInf : static_cast<float>(std::log(total.sum) + total.log_origin);
}

inline void FinishRow(const RowSpan& span, float max, float sum, const float* o) {
  const PlannedTask& planned = *span.planned;
  const AttentionTask& task = planned.task;
  const std::int64_t row = span.query * task.params.num_q_heads + span.q_head;
  const float factor = WeightFactor(planned, span.q_head, max, sum);
  if (task.lse != nullptr) task.lse[row] = LogSumExp(planned, span.q_head, max, sum);
  if (planned.totals != nullptr) {
    planned.totals[2 * row] = max;
    planned.totals[2 * row + 1] = factor;
  }
  char* out = OutputData(task.o, span);
  if (factor == 0.0f) {
    std::memset(out, 0, planned.layout.dim_v * DTypeBytes(task.o.dtype));
    return;
  }
  StoreScaled(o, factor, planned.layout.dim_v, task.o.dtype, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
