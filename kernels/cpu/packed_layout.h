// The one form in which CPU kernels read keys and values: blocks of 16 tokens.
//
//   key block    float32, float16: [head_dim_qk][16 tokens]
//                bfloat16:         [ceil(head_dim_qk / 2)][16 tokens][2 dims]
//   value block  float32, float16: [16 tokens][padded_dim_v]
//                bfloat16:         [8 token pairs][padded_dim_v][2 tokens]
//   int8, float8_e4m3: [16 tokens] scales as float32, then as float32
//   page         for each KV head: all its key blocks, then all its value blocks; key blocks alone
//   where
//                values are prefixes of the keys. Those are brought into the form of value blocks
//                when they are read (latent-inl.h)
//
// Sixteen tokens are one AVX-512 vector of float32 scores. Keys are stored transposed, so a score
// is a chain of multiply-adds down the dims, in a lane of its own, with no horizontal sum. The
// pairs of bfloat16 are what a bfloat16 dot-product instruction reads; without one, a pair is a
// 32-bit lane that splits into two floats with a shift and a mask. The layout never depends on the
// instruction set. Padding and the lanes of tokens that were never written may hold anything.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/api/paged_kv_view.h"
#include "kernels/base/divide.h"

namespace attention::cpu {

inline constexpr int kBlockTokens = 16;
static_assert(kPageGranularity % kBlockTokens == 0, "a page must never cut a block");

inline constexpr std::size_t kScaleBytes = kBlockTokens * sizeof(float);

struct PackedLayout {
  int dim_qk = 0;
  int dim_v = 0;
  int padded_dim_v = 0;    // a multiple of 16, so that value loops need no channel tail
  bool is_latent = false;  // KvGeometry::value_is_key_prefix: no value blocks are stored
  std::size_t key_block_bytes = 0;
  std::size_t value_block_bytes = 0;
  std::int64_t blocks_per_page = 0;
  std::size_t head_bytes = 0;  // of one KV head in one page
  std::size_t page_bytes = 0;

  std::size_t key_offset(int kv_head, std::int64_t block_in_page) const {
    return kv_head * head_bytes + block_in_page * key_block_bytes;
  }
  // Not of a latent cache.
  std::size_t value_offset(int kv_head, std::int64_t block_in_page) const {
    return kv_head * head_bytes + blocks_per_page * key_block_bytes +
           block_in_page * value_block_bytes;
  }
};

inline PackedLayout MakePackedLayout(const KvGeometry& geometry, std::int64_t page_size) {
  constexpr std::size_t kAlign = 64;
  const bool is_paired = geometry.dtype == DType::kBFloat16;
  const std::size_t element = DTypeBytes(geometry.dtype);
  PackedLayout layout;
  layout.dim_qk = geometry.head_dim_qk;
  layout.dim_v = geometry.head_dim_v;
  layout.padded_dim_v = RoundUp(geometry.head_dim_v, 16);
  const std::size_t stored_dim_qk = is_paired ? RoundUp(layout.dim_qk, 2) : layout.dim_qk;
  const std::size_t header = HasRowScales(geometry.dtype) ? kScaleBytes : 0;
  layout.key_block_bytes = RoundUp(header + stored_dim_qk * kBlockTokens * element, kAlign);
  layout.value_block_bytes = header + layout.padded_dim_v * kBlockTokens * element;
  layout.blocks_per_page = page_size / kBlockTokens;
  layout.is_latent = geometry.value_is_key_prefix;
  const std::size_t stored_value_bytes = layout.is_latent ? 0 : layout.value_block_bytes;
  layout.head_bytes = layout.blocks_per_page * (layout.key_block_bytes + stored_value_bytes);
  layout.page_bytes = layout.head_bytes * geometry.num_kv_heads;
  return layout;
}

// Element index of (token, dim) within a key block and of (token, channel) within a value block.
inline std::size_t KeyIndex(bool is_paired, int token, int dim) {
  return is_paired ? (dim / 2 * kBlockTokens + token) * 2 + dim % 2 : dim * kBlockTokens + token;
}
inline std::size_t ValueIndex(bool is_paired, int padded_dim_v, int token, int channel) {
  return is_paired ? (token / 2 * padded_dim_v + channel) * 2 + token % 2
                   : token * padded_dim_v + channel;
}

}  // namespace attention::cpu
