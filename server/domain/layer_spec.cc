#include "server/domain/layer_spec.h"

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "server/base/at_field.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::Status CheckDim(absl::string_view field, std::int64_t value) {
  if (value >= 1 && value <= kMaxLayerColumns) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", expected 1 to ", kMaxLayerColumns));
}

bool AreEqual(const AttentionParams& a, const AttentionParams& b) {
  return a.num_q_heads == b.num_q_heads && a.num_kv_heads == b.num_kv_heads &&
         a.head_dim_qk == b.head_dim_qk && a.head_dim_v == b.head_dim_v &&
         a.softmax_scale == b.softmax_scale && a.soft_cap == b.soft_cap &&
         a.is_causal == b.is_causal && a.window_left == b.window_left &&
         a.window_right == b.window_right && a.sink_tokens == b.sink_tokens;
}

}  // namespace

absl::string_view LayerTensorName(LayerTensor tensor) {
  constexpr absl::string_view kNames[kNumLayerTensors] = {"w_q", "w_k", "w_v", "w_o",
                                                          "b_q", "b_k", "b_v", "b_o"};
  return kNames[static_cast<int>(tensor)];
}

bool operator==(const LayerSpec& a, const LayerSpec& b) {
  return a.dtype == b.dtype && a.model_dim == b.model_dim && a.context_dim == b.context_dim &&
         a.output_dim == b.output_dim && AreEqual(a.attention, b.attention) &&
         a.alibi_slopes == b.alibi_slopes && a.sink_logits == b.sink_logits && a.rotary == b.rotary;
}

absl::Status ValidateLayerSpec(const LayerSpec& spec) {
  ATTENTION_RETURN_IF_ERROR(CheckDim("model_dim", spec.model_dim));
  if (spec.context_dim != 0) ATTENTION_RETURN_IF_ERROR(CheckDim("context_dim", spec.context_dim));
  ATTENTION_RETURN_IF_ERROR(CheckDim("output_dim", spec.output_dim));
  ATTENTION_RETURN_IF_ERROR(ValidateHeads(spec.attention));
  ATTENTION_RETURN_IF_ERROR(AtField("attention", ValidateScores(spec.attention)));
  ATTENTION_RETURN_IF_ERROR(CheckDim("num_q_heads * head_dim_qk", spec.q_columns()));
  ATTENTION_RETURN_IF_ERROR(CheckDim("num_q_heads * head_dim_v", spec.o_columns()));
  if (!spec.rotary) return absl::OkStatus();
  if (spec.is_cross()) {
    return absl::InvalidArgumentError(
        "rotary is set, expected none with cross-attention (context_dim)");
  }
  return ValidateRotary(*spec.rotary, spec.attention.head_dim_qk);
}

LayerTensorShape ShapeOf(const LayerSpec& spec, LayerTensor tensor) {
  const std::int64_t kv_in = spec.is_cross() ? spec.context_dim : spec.model_dim;
  switch (tensor) {
    case LayerTensor::kWq:
      return {spec.q_columns(), spec.model_dim};
    case LayerTensor::kWk:
      return {spec.k_columns(), kv_in};
    case LayerTensor::kWv:
      return {spec.v_columns(), kv_in};
    case LayerTensor::kWo:
      return {spec.output_dim, spec.o_columns()};
    case LayerTensor::kBq:
      return {spec.q_columns()};
    case LayerTensor::kBk:
      return {spec.k_columns()};
    case LayerTensor::kBv:
      return {spec.v_columns()};
    case LayerTensor::kBo:
      return {spec.output_dim};
  }
  return {};
}

}  // namespace attention::server
