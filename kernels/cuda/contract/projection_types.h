// Arguments of the kernels around a projection's products: plain structs that lie in device
// memory. Every pointer is a device address.
#pragma once

#include <cstdint>

#include "kernels/api/dtype.h"

namespace attention::cuda {

// Parts that a float32 is split into: 3 x 8 bits of bfloat16, or 3 x 11 of float16, hold its 24.
inline constexpr int kMaxSplitParts = 3;

// Rows as the operand of products: converted to its type, or split into parts of it that add up to
// them; columns past in_features are zero.
struct DeviceSplit {
  std::int64_t num_rows = 0;
  std::int64_t in_features = 0;
  std::int64_t padded_in = 0;
  int num_parts = 1;
  DType x_dtype = DType::kFloat32;
  DType dtype = DType::kFloat32;
  const void* x = nullptr;   // [num_rows, in_features]
  void* operand = nullptr;   // [num_parts, num_rows, padded_in]
  float* unscale = nullptr;  // [num_rows]: what the products of a row are multiplied by
};

// One block: a row of a DeviceSplit or of a DeviceFinish.
struct RowItem {
  int index = 0;
  std::int64_t row = 0;
};

struct SplitArguments {
  const DeviceSplit* splits = nullptr;
  const RowItem* items = nullptr;  // one a block
};

// Rows of y from the products of their parts.
struct DeviceFinish {
  const float* product = nullptr;  // [num_parts][..., padded_out], part_stride floats apart
  std::int64_t part_stride = 0;
  std::int64_t padded_out = 0;
  std::int64_t out_features = 0;
  int num_parts = 1;
  DType y_dtype = DType::kFloat32;
  const float* unscale = nullptr;  // [rows]; null: 1
  const float* bias = nullptr;     // [out_features]; null: the products have it
  void* y = nullptr;               // [rows, out_features]

  // Heads [0, num_heads) of y are rotated as Rotary does, row i at position first_position + i.
  const double* frequencies = nullptr;  // [num_pairs]; null: not rotated
  double attention_factor = 1;
  int num_pairs = 0;
  int is_interleaved = 0;
  int num_heads = 0;
  int head_dim = 0;
  std::int64_t first_position = 0;
};

struct FinishArguments {
  const DeviceFinish* finishes = nullptr;
  const RowItem* items = nullptr;  // one a block
};

}  // namespace attention::cuda
