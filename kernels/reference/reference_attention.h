// Attention in float64 by the obvious loops: what every other backend is checked against. Never
// tuned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/api/attention_params.h"

namespace attention::reference {

struct ReferenceResult {
  std::vector<double> o;            // [q_len, num_q_heads, head_dim_v]
  std::vector<double> lse;          // [q_len, num_q_heads]
  std::vector<double> weights;      // [q_len, num_q_heads, kv_len]; empty unless asked for
  std::vector<double> column_sums;  // [kv_len, num_q_heads]; empty unless asked for
};

struct ReferenceOptions {
  bool with_weights = false;
  bool with_column_sums = false;
};

// The task must be valid (ValidateTask, but for o and lse, which are not used). Its KV is
// contiguous or in pages of this backend's layout (ReferencePage). Thread-safe.
ReferenceResult ReferenceAttention(const AttentionTask& task, const ReferenceOptions& options = {});

// The same row by row, in ascending order of queries and, within them, heads: a result that has
// seen no row yet, and the step that adds one.
ReferenceResult BeginReference(const AttentionTask& task, const ReferenceOptions& options = {});
void AddReferenceRow(const AttentionTask& task, std::int64_t query, int head,
                     ReferenceResult* result);

// A page of the reference backend: keys [page_size, num_kv_heads, head_dim_qk], then values
// [page_size, num_kv_heads, head_dim_v], both dense in the KV's type; for types with row scales
// (quantized_row.h) then the scales of the keys [page_size, num_kv_heads], then those of the
// values. Without the values where they are prefixes of the keys.
struct ReferencePage {
  KvGeometry geometry;
  std::int64_t page_size = 0;

  std::size_t bytes() const;
  // Index of an element, counted in elements from the start of the page.
  std::int64_t KeyIndex(std::int64_t token, int head, int dim) const;
  std::int64_t ValueIndex(std::int64_t token, int head, int channel) const;
  // Index of a scale, counted in floats from the end of the elements.
  std::int64_t KeyScaleIndex(std::int64_t token, int head) const;
  std::int64_t ValueScaleIndex(std::int64_t token, int head) const;

  // `element` and `scale` are indices from above.
  float Load(const void* page, std::int64_t element, std::int64_t scale) const;
  // A row of `dim` elements of `row_dtype`, converted.
  void StoreRow(void* page, std::int64_t element, std::int64_t scale, const void* row,
                DType row_dtype, int dim) const;
  // Where an element and a scale lie.
  std::byte* ElementAt(void* page, std::int64_t element) const {
    return static_cast<std::byte*>(page) + element * DTypeBytes(geometry.dtype);
  }
  std::byte* ScaleAt(void* page, std::int64_t scale) const {
    return static_cast<std::byte*>(page) + element_bytes() + scale * sizeof(float);
  }

 private:
  std::size_t element_bytes() const;
};

}  // namespace attention::reference
