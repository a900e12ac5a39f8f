// The key/value cache as kernels see it: pages whose inner layout the backend decides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/api/dtype.h"
#include "kernels/api/tensor_view.h"

namespace attention {

// Shape and type of what a token stores in a layer.
struct KvGeometry {
  int num_kv_heads = 0;
  int head_dim_qk = 0;
  int head_dim_v = 0;
  DType dtype = DType::kFloat32;
  // Latent attention: a value is the first head_dim_v elements of its key. Only keys are given, and
  // only keys are stored.
  bool value_is_key_prefix = false;

  // Rows that a token of one head stores, and their elements.
  int rows_per_head() const { return value_is_key_prefix ? 1 : 2; }
  int elements_per_head() const { return head_dim_qk + (value_is_key_prefix ? 0 : head_dim_v); }

  bool operator==(const KvGeometry&) const = default;
};

// A page holds page_size tokens of one layer, all KV heads, keys and values. page_size is a
// multiple of kPageGranularity; page_bytes includes the backend's padding.
struct KvPageLayout {
  std::int64_t page_size = 0;
  std::size_t page_bytes = 0;
};

// Backends store keys in blocks of this many tokens (one AVX-512 vector of float32, one half of an
// m16n8k16 fragment pair), so a page never cuts a block.
inline constexpr std::int64_t kPageGranularity = 16;

// Pages of one sequence in one layer. Token j lives in pages[j / page_size]. Bytes of tokens at or
// past the kv_len of a task are never used, whatever they hold; entries past the last needed page
// are never read.
struct PagedKvView {
  void* const* pages = nullptr;  // [num_pages], each 64-byte aligned; null: the KV is contiguous
  std::int64_t num_pages = 0;
  std::int64_t page_size = 0;  // tokens
};

// Appends rows to pages: token `position + i` receives row i. The pages must exist already.
struct KvAppendTask {
  KvGeometry geometry;
  PagedKvView destination;
  std::int64_t position = 0;
  std::int64_t num_tokens = 0;
  RowsView k;  // [num_tokens, num_kv_heads, head_dim_qk], converted to geometry.dtype if it differs
  RowsView v;  // [num_tokens, num_kv_heads, head_dim_v]; none if values are prefixes of the keys
  // Where the rows lie instead of `k` or `v`, if not empty: the first piece begins at row 0, the
  // others in ascending order. Those of k and v are cut independently. No row straddles pieces.
  std::span<const RowsPiece> k_pieces = {};
  std::span<const RowsPiece> v_pieces = {};
};

}  // namespace attention
