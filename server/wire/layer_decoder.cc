#include "server/wire/layer_decoder.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "proto/codec/dtypes.h"
#include "server/base/status_macros.h"
#include "server/wire/config_decoder.h"
#include "server/wire/tensor_decoder.h"
#include "server/wire/timing_encoder.h"

namespace attention::server {
namespace {

// A vector for each query head, copied: it lives as long as the layer.
absl::Status CopyHeadVector(absl::string_view name, bool is_present, const v1::Tensor& tensor,
                            int num_q_heads, std::vector<float>* values) {
  if (!is_present) return absl::OkStatus();
  const std::string field = absl::StrCat("attention.", name);
  if (tensor.has_shared_memory()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".shared_memory is set, expected data"));
  }
  const std::size_t bytes = static_cast<std::size_t>(num_q_heads) * sizeof(float);
  if (tensor.dtype() != v1::DTYPE_FLOAT32 || tensor.shape_size() != 1 ||
      tensor.shape(0) != num_q_heads || tensor.data().size() != bytes) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", DTypeText(tensor.dtype()), " ",
                                                   ShapeText(tensor), " of ", tensor.data().size(),
                                                   " bytes, expected DTYPE_FLOAT32 [", num_q_heads,
                                                   "], one a query head"));
  }
  values->resize(static_cast<std::size_t>(num_q_heads));
  std::memcpy(values->data(), tensor.data().data(), bytes);
  return CheckFinite(field, values->data(), num_q_heads);
}

void DecodeYarn(const v1::YarnScaling& wire, RotaryParams* rotary) {
  rotary->scaling = RotaryScaling::kYarn;
  rotary->factor = wire.factor();
  rotary->original_max_positions = wire.original_max_positions();
  if (wire.beta_fast() != 0) rotary->beta_fast = wire.beta_fast();
  if (wire.beta_slow() != 0) rotary->beta_slow = wire.beta_slow();
  rotary->attention_factor = wire.attention_factor() != 0 ? wire.attention_factor()
                                                          : DefaultAttentionFactor(wire.factor());
  if (wire.has_truncate()) rotary->truncate = wire.truncate();
}

absl::Status DecodeCustom(const v1::RotaryConfig& wire, RotaryParams* rotary) {
  rotary->scaling = RotaryScaling::kCustom;
  rotary->inv_freq.assign(wire.custom().inv_freq().begin(), wire.custom().inv_freq().end());
  if (wire.custom().attention_factor() != 0) {
    rotary->attention_factor = wire.custom().attention_factor();
  }
  if (wire.theta() == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("rotary.theta is ", wire.theta(), ", expected none with custom.inv_freq"));
}

absl::StatusOr<RotaryParams> DecodeRotary(const v1::RotaryConfig& wire, int head_dim_qk) {
  RotaryParams rotary;
  if (wire.theta() != 0) rotary.theta = wire.theta();
  rotary.dim = wire.dim() == 0 ? head_dim_qk : wire.dim();
  rotary.is_interleaved = wire.is_interleaved();
  if (wire.has_linear()) {
    rotary.scaling = RotaryScaling::kLinear;
    rotary.factor = wire.linear().factor();
  } else if (wire.has_llama3()) {
    rotary.scaling = RotaryScaling::kLlama3;
    rotary.factor = wire.llama3().factor();
    rotary.low_freq_factor = wire.llama3().low_freq_factor();
    rotary.high_freq_factor = wire.llama3().high_freq_factor();
    rotary.original_max_positions = wire.llama3().original_max_positions();
  } else if (wire.has_yarn()) {
    DecodeYarn(wire.yarn(), &rotary);
  } else if (wire.has_custom()) {
    ATTENTION_RETURN_IF_ERROR(DecodeCustom(wire, &rotary));
  }
  return rotary;
}

void EncodeRotary(const RotaryParams& rotary, v1::RotaryConfig* wire) {
  if (rotary.scaling != RotaryScaling::kCustom) wire->set_theta(rotary.theta);
  wire->set_dim(rotary.dim);
  wire->set_is_interleaved(rotary.is_interleaved);
  switch (rotary.scaling) {
    case RotaryScaling::kNone:
      break;
    case RotaryScaling::kLinear:
      wire->mutable_linear()->set_factor(rotary.factor);
      break;
    case RotaryScaling::kLlama3:
      wire->mutable_llama3()->set_factor(rotary.factor);
      wire->mutable_llama3()->set_low_freq_factor(rotary.low_freq_factor);
      wire->mutable_llama3()->set_high_freq_factor(rotary.high_freq_factor);
      wire->mutable_llama3()->set_original_max_positions(rotary.original_max_positions);
      break;
    case RotaryScaling::kYarn:
      wire->mutable_yarn()->set_factor(rotary.factor);
      wire->mutable_yarn()->set_original_max_positions(rotary.original_max_positions);
      wire->mutable_yarn()->set_beta_fast(rotary.beta_fast);
      wire->mutable_yarn()->set_beta_slow(rotary.beta_slow);
      wire->mutable_yarn()->set_attention_factor(rotary.attention_factor);
      wire->mutable_yarn()->set_truncate(rotary.truncate);
      break;
    case RotaryScaling::kCustom:
      wire->mutable_custom()->mutable_inv_freq()->Assign(rotary.inv_freq.begin(),
                                                         rotary.inv_freq.end());
      wire->mutable_custom()->set_attention_factor(rotary.attention_factor);
      break;
  }
}

void EncodeHeadVector(const std::vector<float>& values, v1::Tensor* wire) {
  wire->set_dtype(v1::DTYPE_FLOAT32);
  wire->add_shape(static_cast<std::int64_t>(values.size()));
  wire->set_data(values.data(), values.size() * sizeof(float));
}

void EncodeAttention(const LayerSpec& spec, v1::AttentionConfig* wire) {
  const AttentionParams& params = spec.attention;
  wire->set_softmax_scale(params.softmax_scale);
  wire->set_soft_cap(params.soft_cap);
  wire->set_is_causal(params.is_causal);
  if (params.window_left >= 0) wire->set_window_left(params.window_left);
  if (params.window_right >= 0) wire->set_window_right(params.window_right);
  wire->set_sink_tokens(params.sink_tokens);
  if (!spec.alibi_slopes.empty()) {
    EncodeHeadVector(spec.alibi_slopes, wire->mutable_alibi_slopes());
  }
  if (!spec.sink_logits.empty()) EncodeHeadVector(spec.sink_logits, wire->mutable_sink_logits());
}

}  // namespace

absl::StatusOr<LayerSpec> DecodeLayerConfig(const v1::LayerConfig& wire) {
  LayerSpec spec;
  ATTENTION_ASSIGN_OR_RETURN(spec.dtype, DecodeDType("dtype", wire.dtype()));
  spec.model_dim = wire.model_dim();
  spec.context_dim = wire.context_dim();
  spec.output_dim = wire.output_dim() == 0 ? wire.model_dim() : wire.output_dim();
  AttentionParams& params = spec.attention;
  params.num_q_heads = wire.num_q_heads();
  params.num_kv_heads = wire.num_kv_heads() == 0 ? wire.num_q_heads() : wire.num_kv_heads();
  params.head_dim_qk = wire.head_dim_qk();
  params.head_dim_v = wire.head_dim_v() == 0 ? wire.head_dim_qk() : wire.head_dim_v();
  ATTENTION_RETURN_IF_ERROR(ValidateHeads(params));
  ATTENTION_RETURN_IF_ERROR(DecodeConfig("attention", wire.attention(), &params));
  ATTENTION_RETURN_IF_ERROR(CopyHeadVector("alibi_slopes", wire.attention().has_alibi_slopes(),
                                           wire.attention().alibi_slopes(), params.num_q_heads,
                                           &spec.alibi_slopes));
  ATTENTION_RETURN_IF_ERROR(CopyHeadVector("sink_logits", wire.attention().has_sink_logits(),
                                           wire.attention().sink_logits(), params.num_q_heads,
                                           &spec.sink_logits));
  if (wire.has_rotary()) {
    ATTENTION_ASSIGN_OR_RETURN(spec.rotary, DecodeRotary(wire.rotary(), params.head_dim_qk));
  }
  ATTENTION_RETURN_IF_ERROR(ValidateLayerSpec(spec));
  return spec;
}

absl::StatusOr<LayerTensor> DecodeLayerTensorName(v1::LayerTensorName name) {
  if (name >= v1::LAYER_TENSOR_NAME_W_Q && name <= v1::LAYER_TENSOR_NAME_B_O) {
    return static_cast<LayerTensor>(name - v1::LAYER_TENSOR_NAME_W_Q);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tensor.name is ", static_cast<int>(name),
                   ", expected LAYER_TENSOR_NAME_W_Q (1) to B_O (8)"));
}

void EncodeLayer(const Layer& layer, v1::Layer* wire) {
  const LayerSpec& spec = layer.spec;
  wire->set_layer_id(layer.layer_id);
  v1::LayerConfig* config = wire->mutable_config();
  config->set_dtype(codec::DTypeToWire(spec.dtype));
  config->set_model_dim(spec.model_dim);
  config->set_context_dim(spec.context_dim);
  config->set_output_dim(spec.output_dim);
  config->set_num_q_heads(spec.attention.num_q_heads);
  config->set_num_kv_heads(spec.attention.num_kv_heads);
  config->set_head_dim_qk(spec.attention.head_dim_qk);
  config->set_head_dim_v(spec.attention.head_dim_v);
  EncodeAttention(spec, config->mutable_attention());
  if (spec.rotary) EncodeRotary(*spec.rotary, config->mutable_rotary());
  for (const LayerTensor tensor : layer.tensors) {
    wire->add_tensors(
        static_cast<v1::LayerTensorName>(static_cast<int>(tensor) + v1::LAYER_TENSOR_NAME_W_Q));
  }
  wire->set_weight_bytes(static_cast<std::int64_t>(layer.weights->bytes()));
  wire->set_sha256(layer.sha256);
  EncodeTime(layer.create_time, wire->mutable_create_time());
}

}  // namespace attention::server
