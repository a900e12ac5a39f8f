// Rows of y from products (projection_types.h): parts added, bias, rotary embedding, one rounding.
// A block takes one row; a thread that rotates takes a pair of every head, so that each angle is
// worked out once, in float64, and every head is rotated as Rotary::Apply does it.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/projection_types.h"
#include "kernels/cuda/kernels/common/convert.h"

namespace attention::cuda {

struct FinishRows {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kSharedBytes = 0;
  using Arguments = FinishArguments;

  struct Row {
    const DeviceFinish& finish;
    std::int64_t index;
    float unscale;

    ATTENTION_DEVICE float At(std::int64_t column) const {
      const float* product = finish.product + index * finish.padded_out + column;
      // The smallest first.
      float sum = product[(finish.num_parts - 1) * finish.part_stride];
      for (int part = finish.num_parts - 2; part >= 0; --part) {
        sum = product[part * finish.part_stride] + sum;
      }
      sum = sum * unscale;
      return finish.bias == nullptr ? sum : sum + finish.bias[column];
    }
    ATTENTION_DEVICE void Store(std::int64_t column, float value) const {
      FloatToElement(finish.y, finish.y_dtype, index * finish.out_features + column, value);
    }
  };

  static ATTENTION_DEVICE void Rotate(const Row& row) {
    const DeviceFinish& finish = row.finish;
    const int step = finish.is_interleaved != 0 ? 2 : 1;
    const int partner = finish.is_interleaved != 0 ? 1 : finish.num_pairs;
    for (int pair = ThreadIndex(); pair < finish.num_pairs; pair += kThreads) {
      const double angle =
          static_cast<double>(finish.first_position + row.index) * finish.frequencies[pair];
      const auto cos = static_cast<float>(Cos(angle) * finish.attention_factor);
      const auto sin = static_cast<float>(Sin(angle) * finish.attention_factor);
      for (int head = 0; head < finish.num_heads; ++head) {
        const std::int64_t column = static_cast<std::int64_t>(head) * finish.head_dim + pair * step;
        const float x = row.At(column);
        const float y = row.At(column + partner);
        row.Store(column, x * cos - y * sin);
        row.Store(column + partner, y * cos + x * sin);
      }
    }
  }

  static ATTENTION_DEVICE void Run(const FinishArguments& arguments, char*) {
    const RowItem& item = arguments.items[BlockIndex()];
    const DeviceFinish& finish = arguments.finishes[item.index];
    const Row row{finish, item.row, finish.unscale == nullptr ? 1.0f : finish.unscale[item.row]};
    std::int64_t rotated_columns = 0;
    if (finish.frequencies != nullptr) {
      rotated_columns = static_cast<std::int64_t>(finish.num_heads) * finish.head_dim;
      Rotate(row);
    }
    for (std::int64_t column = ThreadIndex(); column < finish.out_features; column += kThreads) {
      const bool is_rotated = column < rotated_columns &&
                              static_cast<int>(column % finish.head_dim) < 2 * finish.num_pairs;
      if (!is_rotated) row.Store(column, row.At(column));
    }
  }
};

}  // namespace attention::cuda
