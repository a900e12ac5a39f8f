// Tiles of rows as float32 in shared memory, and their scores in float32 arithmetic: what the
// kernels share that take every combination of types.
//
// A block has 128 threads in 16 groups of 8. Group g owns rows 2g and 2g + 1 of a tile of 32; its
// thread t computes their scores with keys t, t + 8, t + 16 and t + 24 of a tile of 32. A score is
// one chain of fused multiply-adds over ascending dims.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/scores.h"

namespace attention::cuda {

inline constexpr int kFloatThreads = 128;
inline constexpr int kFloatTile = 32;  // rows, and keys

// [32][kHeadDim] floats. Rows are 4 floats longer, so that 16-byte reads of 8 neighbouring rows
// fall into different banks.
template <int kHeadDim>
struct FloatTile {
  static constexpr int kStride = kHeadDim + 4;
  static constexpr int kFloats = kFloatTile * kStride;

  float* memory;

  ATTENTION_DEVICE float* row(int index) const { return memory + index * kStride; }
};

ATTENTION_DEVICE int FloatGroup() { return ThreadIndex() / 8; }
ATTENTION_DEVICE int FloatLane() { return ThreadIndex() % 8; }

// Rows of queries; `query_of(row)` and `head_of(row)` name them, `num_rows` of them exist.
template <int kHeadDim, typename QueryOf, typename HeadOf>
ATTENTION_DEVICE void LoadFloatQueries(const DeviceTask& task, int num_rows,
                                       const FloatTile<kHeadDim>& tile, const QueryOf& query_of,
                                       const HeadOf& head_of) {
  const int padded = PadDim(task.head_dim_qk);
  for (int i = ThreadIndex(); i < kFloatTile * kHeadDim; i += kFloatThreads) {
    const int row = i / kHeadDim, dim = i % kHeadDim;
    float value = 0.0f;
    if (row < num_rows && dim < padded) {
      const std::int64_t index = query_of(row) * task.num_q_heads + head_of(row);
      value = ElementToFloat(task.q, task.q_dtype, index * padded + dim);
    }
    tile.row(row)[dim] = value;
  }
}

// Keys or values [first, first + 32) of a head. Those that `is_wanted(key)` refuses become zeros
// and are not read.
template <int kHeadDim, typename IsWanted>
ATTENTION_DEVICE void LoadFloatKv(const DeviceTask& task, int kv_head, int first, bool is_value,
                                  const FloatTile<kHeadDim>& tile, const IsWanted& is_wanted) {
  const PageLayout& layout = task.layout;
  const int piece_elements = kPieceBytes / static_cast<int>(DTypeBytes(task.kv_dtype));
  const int padded = PadDim(is_value ? task.head_dim_v : task.head_dim_qk);
  for (int i = ThreadIndex(); i < kFloatTile * kHeadDim; i += kFloatThreads) {
    const int row = i / kHeadDim, dim = i % kHeadDim;
    float value = 0.0f;
    if (dim < padded && is_wanted(first + row)) {
      int token = 0;
      const char* head = PageOf(task, kv_head, first + row, &token);
      const int piece = dim / piece_elements;
      value = ElementToFloat(
          head + (is_value ? layout.value_piece(token, piece) : layout.key_piece(token, piece)),
          task.kv_dtype, dim % piece_elements);
      if (HasRowScales(task.kv_dtype)) {
        const char* scales =
            head + (is_value ? layout.value_scale_offset : layout.key_scale_offset);
        value *= reinterpret_cast<const float*>(scales)[token];
      }
    }
    tile.row(row)[dim] = value;
  }
}

// <q, k> of the thread's rows and keys.
template <int kHeadDim>
ATTENTION_DEVICE void FloatDots(int head_dim_qk, const FloatTile<kHeadDim>& queries,
                                const FloatTile<kHeadDim>& keys, float (&dots)[2][4]) {
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) dots[i][j] = 0.0f;
  }
  const int padded = PadDim(head_dim_qk);
  const float* q[2] = {queries.row(2 * FloatGroup()), queries.row(2 * FloatGroup() + 1)};
  for (int dim = 0; dim < padded; dim += 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* k = keys.row(FloatLane() + 8 * j) + dim;
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        dots[0][j] = Fma(q[0][dim + step], k[step], dots[0][j]);
        dots[1][j] = Fma(q[1][dim + step], k[step], dots[1][j]);
      }
    }
  }
}

}  // namespace attention::cuda
