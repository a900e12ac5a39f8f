// Packs rows of keys and values into blocks (packed_layout.h), converting the element type.
#if defined(ATTENTION_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_PACK_INL_H_
#undef ATTENTION_CPU_PACK_INL_H_
#else
#define ATTENTION_CPU_PACK_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "kernels/api/quantized_row.h"
#include "kernels/api/rows_cursor.h"
#include "kernels/cpu/convert-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// Copies `count` elements of `from` (unaligned) as elements of type `to`.
static_assert(kMaxHeadDimV <= kMaxHeadDimQk, "rows of values find room where those of keys do");
inline void ConvertRow(const void* from, DType from_type, DType to, int count, void* out) {
  if (from_type == to) {
    std::memcpy(out, from, count * DTypeBytes(to));
    return;
  }
  alignas(64) float wide[kMaxHeadDimQk];
  WidenRow(from, from_type, count, wide);
  NarrowRow(wide, count, to, out);
}

// out[2 i] = even[i], out[2 i + 1] = odd[i].
HWY_INLINE void InterleavePairs(const std::uint16_t* even, const std::uint16_t* odd, int count,
                                std::uint16_t* HWY_RESTRICT out) {
  int i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<std::uint16_t, 8> d;
  for (; i + 8 <= count; i += 8) {
    const auto a = hn::LoadU(d, even + i), b = hn::LoadU(d, odd + i);
    hn::StoreU(hn::InterleaveLower(d, a, b), d, out + 2 * i);
    hn::StoreU(hn::InterleaveUpper(d, a, b), d, out + 2 * i + 8);
  }
#endif
  for (; i < count; ++i) {
    out[2 * i] = LoadUnaligned(even + i);
    out[2 * i + 1] = LoadUnaligned(odd + i);
  }
}
// Only bfloat16 is stored in pairs.
HWY_INLINE void InterleavePairs(const std::uint32_t*, const std::uint32_t*, int, std::uint32_t*) {}

// One row of a key: a column of the block.
template <typename Element>
HWY_INLINE void PackKeyRow(const Element* HWY_RESTRICT row, int dim_qk, bool is_paired, int token,
                           Element* HWY_RESTRICT block) {
  if (!is_paired) {
    for (int dim = 0; dim < dim_qk; ++dim) block[dim * kBlockTokens + token] = row[dim];
    return;
  }
  block += token * 2;
  for (int dim = 0; dim + 2 <= dim_qk; dim += 2) {
    std::memcpy(block + dim * kBlockTokens, row + dim, 2 * sizeof(Element));
  }
  if (dim_qk % 2 != 0) block[(dim_qk - 1) * kBlockTokens] = row[dim_qk - 1];
}

template <typename Element>
HWY_INLINE void PackValueRow(const Element* HWY_RESTRICT row, const PackedLayout& layout,
                             bool is_paired, int token, Element* HWY_RESTRICT block) {
  Element* out = block + ValueIndex(is_paired, layout.padded_dim_v, token, 0);
  if (!is_paired) {
    std::memcpy(out, row, layout.dim_v * sizeof(Element));
    return;
  }
  for (int channel = 0; channel < layout.dim_v; ++channel) out[channel * 2] = row[channel];
}

// Rows of one head lie a page apart when there are many heads, where no hardware prefetcher
// follows.
HWY_INLINE void PrefetchRow(RowsCursor& rows, std::int64_t row, int head, int dim) {
  const char* data = rows.At(row, head);
  const std::size_t bytes = dim * DTypeBytes(rows.dtype());
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(data + at);
}

// The rows of 16 tokens of one head in the cache's element type: where they lie, or converted.
template <typename Element>
struct BlockRows {
  const Element* row[kBlockTokens];
  alignas(64) Element converted[kBlockTokens][kMaxHeadDimQk];
};

template <typename Element>
HWY_INLINE void FindBlockRows(RowsCursor& rows, DType to, std::int64_t token, int head, int dim,
                              BlockRows<Element>* out) {
  for (int t = 0; t < kBlockTokens; ++t) {
    const char* data = rows.At(token + t, head);
    if (rows.dtype() == to) {
      out->row[t] = reinterpret_cast<const Element*>(data);
    } else {
      ConvertRow(data, rows.dtype(), to, dim, out->converted[t]);
      out->row[t] = out->converted[t];
    }
  }
}

// A whole key block is a transposition of units of 32 bits: dims of float32, pairs of bfloat16.
// Four by four in registers it takes a third of the time of storing element by element.
template <typename Element>
HWY_INLINE void PackKeyBlock(const Element* const (&rows)[kBlockTokens], int dim_qk, bool is_paired,
                             Element* HWY_RESTRICT block) {
  constexpr int kUnit = sizeof(std::uint32_t) / sizeof(Element);
  int dim = 0;
  if (kUnit == 1 || is_paired) {
    for (; dim + 4 * kUnit <= dim_qk; dim += 4 * kUnit) {
      for (int t = 0; t < kBlockTokens; t += 4) {
        const auto unit = [&](int i) {
          return reinterpret_cast<const std::uint32_t*>(rows[t + i] + dim);
        };
        Transpose4x4(unit(0), unit(1), unit(2), unit(3),
                     reinterpret_cast<std::uint32_t*>(block + dim * kBlockTokens) + t,
                     kBlockTokens);
      }
    }
  }
  for (; dim < dim_qk; ++dim) {
    for (int t = 0; t < kBlockTokens; ++t)
      block[KeyIndex(is_paired, t, dim)] = LoadUnaligned(rows[t] + dim);
  }
}

// Calls of memcpy alone took half of the time of packing rows of 64.
template <typename Element>
HWY_INLINE void CopyRow(const Element* HWY_RESTRICT from, int count, Element* HWY_RESTRICT to) {
  const hn::ScalableTag<Element> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  int i = 0;
  if constexpr (kLanes > 1) {
    for (; i + lanes <= count; i += lanes) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
  }
  std::memcpy(to + i, from + i, (count - i) * sizeof(Element));
}

template <typename Element>
HWY_INLINE void PackValueBlock(const Element* const (&rows)[kBlockTokens],
                               const PackedLayout& layout, bool is_paired,
                               Element* HWY_RESTRICT block) {
  for (int t = 0; t < kBlockTokens; ++t) {
    if (!is_paired) {
      CopyRow(rows[t], layout.dim_v, block + t * layout.padded_dim_v);
    } else if (t % 2 == 0) {
      InterleavePairs(rows[t], rows[t + 1], layout.dim_v, block + t * layout.padded_dim_v);
    }
  }
}

// Where the tokens of one head go; values of a latent cache go nowhere.
template <typename Element>
struct BlockAddress {
  Element* keys;
  Element* values;
};

template <typename Element>
HWY_INLINE BlockAddress<Element> AddressOf(const KvAppendTask& task, const PackedLayout& layout,
                                           int kv_head, std::int64_t block) {
  const std::int64_t block_in_page = block % layout.blocks_per_page;
  auto* page = static_cast<char*>(task.destination.pages[block / layout.blocks_per_page]);
  auto* keys = reinterpret_cast<Element*>(page + layout.key_offset(kv_head, block_in_page));
  if (layout.is_latent) return {keys, nullptr};
  return {keys, reinterpret_cast<Element*>(page + layout.value_offset(kv_head, block_in_page))};
}

// The rows of keys and values of an append.
struct AppendRows {
  RowsCursor k;
  RowsCursor v;

  AppendRows(const KvAppendTask& task, std::int64_t first_row)
      : k(task.k, task.k_pieces, first_row), v(task.v, task.v_pieces, first_row) {}
};

template <typename Element>
inline void PackToken(const KvAppendTask& task, const PackedLayout& layout, int kv_head,
                      std::int64_t i, AppendRows& from) {
  const DType dtype = task.geometry.dtype;
  const bool is_paired = dtype == DType::kBFloat16;
  const std::int64_t position = task.position + i;
  const int token = static_cast<int>(position % kBlockTokens);
  const auto block = AddressOf<Element>(task, layout, kv_head, position / kBlockTokens);
  alignas(64) Element row[kMaxHeadDimQk];
  const char* key = from.k.At(i, kv_head);
  ConvertRow(key, from.k.dtype(), dtype, layout.dim_qk, row);
  PackKeyRow(row, layout.dim_qk, is_paired, token, block.keys);
  if (layout.is_latent) return;
  const char* value = from.v.At(i, kv_head);
  ConvertRow(value, from.v.dtype(), dtype, layout.dim_v, row);
  PackValueRow(row, layout, is_paired, token, block.values);
}

template <typename Element>
inline void PackTokens(const KvAppendTask& task, const PackedLayout& layout, int kv_head,
                       std::int64_t token_begin, std::int64_t token_end, bool is_prefetched) {
  const DType dtype = task.geometry.dtype;
  const bool is_paired = dtype == DType::kBFloat16;
  BlockRows<Element> rows;
  AppendRows from(task, token_begin);
  AppendRows ahead_from = from;
  for (std::int64_t i = token_begin; i < token_end;) {
    const std::int64_t position = task.position + i;
    if (position % kBlockTokens != 0 || i + kBlockTokens > token_end) {
      PackToken<Element>(task, layout, kv_head, i++, from);
      continue;
    }
    const auto block = AddressOf<Element>(task, layout, kv_head, position / kBlockTokens);
    const std::int64_t ahead_end = is_prefetched ? 0 : std::min(token_end, i + 2 * kBlockTokens);
    for (std::int64_t ahead = i + kBlockTokens; ahead < ahead_end; ++ahead) {
      PrefetchRow(ahead_from.k, ahead, kv_head, layout.dim_qk);
      if (!layout.is_latent) PrefetchRow(ahead_from.v, ahead, kv_head, layout.dim_v);
    }
    FindBlockRows(from.k, dtype, i, kv_head, layout.dim_qk, &rows);
    PackKeyBlock(rows.row, layout.dim_qk, is_paired, block.keys);
    i += kBlockTokens;
    if (layout.is_latent) continue;
    FindBlockRows(from.v, dtype, i - kBlockTokens, kv_head, layout.dim_v, &rows);
    PackValueBlock(rows.row, layout, is_paired, block.values);
  }
}

// Rounds scaled elements to their type and stores them.
HWY_INLINE void StoreQuantized(Vec scaled, std::int8_t* HWY_RESTRICT out) {
  const hn::Rebind<std::int8_t, F32> narrow;
  hn::StoreU(hn::DemoteTo(narrow, hn::NearestInt(scaled)), narrow, out);
}
HWY_INLINE void StoreQuantized(Vec scaled, std::uint8_t* HWY_RESTRICT out) {
  const hn::Rebind<std::uint8_t, F32> narrow;
  hn::StoreU(hn::DemoteTo(narrow, Float8Bits(scaled)), narrow, out);
}

// Widens a row and quantises it (quantized_row.h) to `out`, which has room for whole vectors.
// Returns its scale.
template <class Kv>
inline float QuantizeRow(RowsCursor& rows, std::int64_t row, int head, DType dtype, int dim,
                         typename Kv::Element* HWY_RESTRICT out) {
  const F32 d;
  alignas(64) float wide[kMaxHeadDimQk + kLanes];
  const char* data = rows.At(row, head);
  WidenRow(data, rows.dtype(), dim, wide);
  std::fill_n(wide + dim, kLanes, 0.0f);
  Vec max = hn::Zero(d);
  Vec poison = hn::Zero(d);  // stays 0 while all is finite
  for (int i = 0; i < dim; i += kLanes) {
    const Vec x = hn::Load(d, wide + i);
    max = MaxIgnoringNaN(hn::Abs(x), max);
    poison = hn::MulAdd(x, hn::Zero(d), poison);
  }
  const Vec largest = hn::Add(hn::MaxOfLanes(d, max), hn::SumOfLanes(d, poison));
  const RowScale scale = RowScale::Of(dtype, hn::GetLane(largest));
  if (scale.reciprocal == 0.0f) {
    std::fill_n(out, dim, 0);
    return scale.scale;
  }
  const Vec reciprocal = hn::Set(d, scale.reciprocal);
  for (int i = 0; i < dim; i += kLanes) {
    StoreQuantized(hn::Mul(hn::Load(d, wide + i), reciprocal), out + i);
  }
  return scale.scale;
}

template <class Kv>
inline void PackQuantizedTokens(const KvAppendTask& task, const PackedLayout& layout, int kv_head,
                                std::int64_t token_begin, std::int64_t token_end) {
  using Element = typename Kv::Element;
  const DType dtype = task.geometry.dtype;
  alignas(64) Element row[kMaxHeadDimQk + kLanes];
  AppendRows from(task, token_begin);
  for (std::int64_t i = token_begin; i < token_end; ++i) {
    const std::int64_t position = task.position + i;
    const int token = static_cast<int>(position % kBlockTokens);
    const auto block = AddressOf<Element>(task, layout, kv_head, position / kBlockTokens);
    const float key_scale = QuantizeRow<Kv>(from.k, i, kv_head, dtype, layout.dim_qk, row);
    std::memcpy(block.keys + token * sizeof(float), &key_scale, sizeof(float));
    PackKeyRow(row, layout.dim_qk, /*is_paired=*/false, token, block.keys + kScaleBytes);
    if (layout.is_latent) continue;
    const float value_scale = QuantizeRow<Kv>(from.v, i, kv_head, dtype, layout.dim_v, row);
    std::memcpy(block.values + token * sizeof(float), &value_scale, sizeof(float));
    PackValueRow(row, layout, /*is_paired=*/false, token, block.values + kScaleBytes);
  }
}

inline void Pack(const KvAppendTask& task, const PackedLayout& layout, int kv_head,
                 std::int64_t token_begin, std::int64_t token_end, bool is_prefetched) {
  if (task.geometry.dtype == DType::kInt8) {
    PackQuantizedTokens<Int8Kv>(task, layout, kv_head, token_begin, token_end);
  } else if (task.geometry.dtype == DType::kFloat8E4M3) {
    PackQuantizedTokens<Float8Kv>(task, layout, kv_head, token_begin, token_end);
  } else if (task.geometry.dtype == DType::kFloat32) {
    PackTokens<std::uint32_t>(task, layout, kv_head, token_begin, token_end, is_prefetched);
  } else {
    PackTokens<std::uint16_t>(task, layout, kv_head, token_begin, token_end, is_prefetched);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
