// Rows of a cache as it stores them, in a form that no backend's layout shows: what one backend has
// read, another one writes with the same bits, whatever their pages look like.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/api/paged_kv_view.h"

namespace attention {

// Dense rows in memory of the host, in the cache's element type. Somebody else owns them.
struct StoredRows {
  std::byte* k = nullptr;     // [num_tokens, num_kv_heads, head_dim_qk]
  std::byte* v = nullptr;     // [num_tokens, num_kv_heads, head_dim_v]; null: prefixes of the keys
  float* k_scales = nullptr;  // [num_tokens, num_kv_heads]; null: the type has no row scales
  float* v_scales = nullptr;  // the same, and null where v is
};

// The parts of StoredRows one after the other, as one piece of memory: scales of keys, scales of
// values, keys, values.
struct StoredRowsLayout {
  std::size_t v_scales_offset = 0;
  std::size_t k_offset = 0;
  std::size_t v_offset = 0;
  std::size_t bytes = 0;

  static StoredRowsLayout Of(const KvGeometry& geometry, std::int64_t num_tokens);
};

// The rows of so many tokens in `memory`, which is aligned to 4 bytes and has the layout's bytes.
StoredRows StoredRowsIn(const KvGeometry& geometry, std::int64_t num_tokens, std::byte* memory);

// Tokens [position, position + num_tokens) of a layer, and where their rows come from or go to.
struct StoredRowsTask {
  KvGeometry geometry;
  PagedKvView pages;
  std::int64_t position = 0;
  std::int64_t num_tokens = 0;
  StoredRows rows;
};

// Moves tokens of one KV head: tokens[i] of `from` becomes token `position + i` of `to`. The tokens
// ascend. Pages may be in both views where no token moves to a higher place: tokens[i] >= position
// + i.
struct MoveTokensTask {
  KvGeometry geometry;
  PagedKvView from;
  PagedKvView to;
  int kv_head = 0;
  std::int64_t position = 0;
  std::span<const std::int64_t> tokens;
};

}  // namespace attention
