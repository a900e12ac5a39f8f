#include "kernels/api/stored_rows.h"

namespace attention {

StoredRowsLayout StoredRowsLayout::Of(const KvGeometry& geometry, std::int64_t num_tokens) {
  const std::size_t rows = static_cast<std::size_t>(num_tokens) * geometry.num_kv_heads;
  const std::size_t row_bytes = DTypeBytes(geometry.dtype);
  const std::size_t scales = HasRowScales(geometry.dtype) ? rows * sizeof(float) : 0;
  StoredRowsLayout layout;
  layout.v_scales_offset = scales;
  layout.k_offset = scales * geometry.rows_per_head();
  layout.v_offset = layout.k_offset + rows * geometry.head_dim_qk * row_bytes;
  layout.bytes = layout.k_offset + rows * geometry.elements_per_head() * row_bytes;
  return layout;
}

StoredRows StoredRowsIn(const KvGeometry& geometry, std::int64_t num_tokens, std::byte* memory) {
  const StoredRowsLayout layout = StoredRowsLayout::Of(geometry, num_tokens);
  const bool has_values = !geometry.value_is_key_prefix;
  StoredRows rows;
  rows.k = memory + layout.k_offset;
  if (has_values) rows.v = memory + layout.v_offset;
  if (!HasRowScales(geometry.dtype)) return rows;
  rows.k_scales = reinterpret_cast<float*>(memory);
  if (has_values) rows.v_scales = reinterpret_cast<float*>(memory + layout.v_scales_offset);
  return rows;
}

}  // namespace attention
