// Describes an attention layer: what it computes, and which tensors it is made of; without the
// tensors.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/api/attention_params.h"
#include "kernels/api/rotary.h"

namespace attention::server {

enum class LayerTensor { kWq, kWk, kWv, kWo, kBq, kBk, kBv, kBo };
inline constexpr int kNumLayerTensors = 8;
inline constexpr bool IsBias(LayerTensor tensor) { return tensor >= LayerTensor::kBq; }
// "w_q"
absl::string_view LayerTensorName(LayerTensor tensor);

// Columns of x, of a context, of the output, and of all query or value heads together are at most
// so many: twice those of the largest models.
inline constexpr int kMaxLayerColumns = 1 << 16;

struct LayerSpec {
  DType dtype = DType::kFloat32;  // of the weights
  int model_dim = 0;
  int context_dim = 0;  // 0: self-attention
  int output_dim = 0;
  // Heads, dims, scale, causality and window; dtypes are float32, those of the projected rows.
  AttentionParams attention;
  std::vector<float> alibi_slopes;  // [num_q_heads], or empty
  std::vector<float> sink_logits;   // [num_q_heads], or empty
  std::optional<RotaryParams> rotary;

  bool is_cross() const { return context_dim > 0; }
  std::int64_t q_columns() const {
    return std::int64_t{attention.num_q_heads} * attention.head_dim_qk;
  }
  std::int64_t k_columns() const {
    return std::int64_t{attention.num_kv_heads} * attention.head_dim_qk;
  }
  std::int64_t v_columns() const {
    return std::int64_t{attention.num_kv_heads} * attention.head_dim_v;
  }
  std::int64_t o_columns() const {
    return std::int64_t{attention.num_q_heads} * attention.head_dim_v;
  }
};

bool operator==(const LayerSpec& a, const LayerSpec& b);

// INVALID_ARGUMENT names the field with its actual and the expected value.
absl::Status ValidateLayerSpec(const LayerSpec& spec);

// [out_features, in_features], or [out_features] of a bias with in_features = 1.
struct LayerTensorShape {
  std::int64_t out_features = 0;
  std::int64_t in_features = 1;
  std::int64_t elements() const { return out_features * in_features; }
};
LayerTensorShape ShapeOf(const LayerSpec& spec, LayerTensor tensor);

}  // namespace attention::server
