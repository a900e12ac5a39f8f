// Packs rows of keys and values into blocks (packed_layout.h), converting the element type.
#if defined(ATTENTION_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_PACK_INL_H_
#undef ATTENTION_CPU_PACK_INL_H_
#else
#define ATTENTION_CPU_PACK_INL_H_
#endif

#include <cstring>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// Copies `count` elements of `from` (unaligned) as elements of type `to`.
inline void ConvertRow(const void* from, DType from_type, DType to, int count, void* out) {
  if (from_type == to) {
    std::memcpy(out, from, count * DTypeBytes(to));
    return;
  }
  float wide[kMaxHeadDim];
  if (from_type == DType::kFloat32) {
    std::memcpy(wide, from, count * sizeof(float));
  } else if (from_type == DType::kFloat16) {
    for (int i = 0; i < count; ++i) wide[i] = LoadElement(from, DType::kFloat16, i);
  } else {
    for (int i = 0; i < count; ++i) wide[i] = LoadElement(from, DType::kBFloat16, i);
  }
  if (to == DType::kFloat32) {
    std::memcpy(out, wide, count * sizeof(float));
  } else if (to == DType::kFloat16) {
    for (int i = 0; i < count; ++i) StoreElement(out, DType::kFloat16, i, wide[i]);
  } else {
    for (int i = 0; i < count; ++i) StoreElement(out, DType::kBFloat16, i, wide[i]);
  }
}

inline const void* RowData(const RowsView& rows, std::int64_t row, int head) {
  return static_cast<const char*>(rows.data) +
         (row * rows.row_stride + head * rows.head_stride) *
             static_cast<std::int64_t>(DTypeBytes(rows.dtype));
}

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
HWY_INLINE void PrefetchRow(const RowsView& rows, std::int64_t row, int head, int dim) {
  const auto* data = static_cast<const char*>(RowData(rows, row, head));
  const std::size_t bytes = dim * DTypeBytes(rows.dtype);
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(data + at);
}

template <typename Element>
inline void PackTokens(const KvAppendTask& task, const PackedLayout& layout, int kv_head,
                       std::int64_t token_begin, std::int64_t token_end) {
  constexpr std::int64_t kPrefetchTokens = 8;
  const DType dtype = task.geometry.dtype;
  const bool is_paired = dtype == DType::kBFloat16;
  alignas(64) Element row[kMaxHeadDim];
  for (std::int64_t i = token_begin; i < token_end; ++i) {
    if (i + kPrefetchTokens < token_end) {
      PrefetchRow(task.k, i + kPrefetchTokens, kv_head, layout.dim_qk);
      PrefetchRow(task.v, i + kPrefetchTokens, kv_head, layout.dim_v);
    }
    const std::int64_t position = task.position + i;
    const std::int64_t block = position / kBlockTokens;
    const int token = static_cast<int>(position % kBlockTokens);
    const std::int64_t block_in_page = block % layout.blocks_per_page;
    auto* page = static_cast<char*>(task.destination.pages[block / layout.blocks_per_page]);
    ConvertRow(RowData(task.k, i, kv_head), task.k.dtype, dtype, layout.dim_qk, row);
    PackKeyRow(row, layout.dim_qk, is_paired, token,
               reinterpret_cast<Element*>(page + layout.key_offset(kv_head, block_in_page)));
    ConvertRow(RowData(task.v, i, kv_head), task.v.dtype, dtype, layout.dim_v, row);
    PackValueRow(row, layout, is_paired, token,
                 reinterpret_cast<Element*>(page + layout.value_offset(kv_head, block_in_page)));
  }
}

inline void Pack(const KvAppendTask& task, const PackedLayout& layout, int kv_head,
                 std::int64_t token_begin, std::int64_t token_end) {
  if (task.geometry.dtype == DType::kFloat32) {
    PackTokens<std::uint32_t>(task, layout, kv_head, token_begin, token_end);
  } else {
    PackTokens<std::uint16_t>(task, layout, kv_head, token_begin, token_end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
