// Views of tensors that somebody else owns. Cheap to copy; never free anything.
#pragma once

#include <cstdint>

#include "kernels/api/dtype.h"

namespace attention {

// Rows of one sequence: [rows, heads, head_dim], head_dim contiguous, strides in elements. The data
// need not be aligned to its element size.
struct RowsView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;
};

// Rows of a tensor that lies scattered in memory: a list of pieces holds them in order, and a piece
// ends where the next one begins. Row begin_row is the first of `rows`, which may begin at any
// byte.
struct RowsPiece {
  std::int64_t begin_row = 0;
  RowsView rows;
};

// The same for results.
struct MutableRowsView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;
};

// A dense [rows, heads, head_dim] view.
inline RowsView DenseRows(const void* data, DType dtype, std::int64_t heads,
                          std::int64_t head_dim) {
  return {data, dtype, heads * head_dim, head_dim};
}
inline MutableRowsView DenseRows(void* data, DType dtype, std::int64_t heads,
                                 std::int64_t head_dim) {
  return {data, dtype, heads * head_dim, head_dim};
}

// Additive bias of one sequence: [num_q_heads, q_len, kv_len], strides in elements. A stride of 0
// shares what lies there along its axis: all of it among the heads, a row among the queries, one
// element among the keys; key_stride is 0 or 1. data may be null: none.
struct BiasView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t key_stride = 1;
};

// Boolean mask with the shape and strides of BiasView, one byte an element: non-zero is visible.
struct MaskView {
  const std::uint8_t* data = nullptr;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t key_stride = 1;
};

}  // namespace attention
