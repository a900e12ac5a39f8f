#include <string_view>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/convert/convert.h"

namespace attention::client::internal {
namespace {

void ToProto(const RotaryConfig& rotary, v1::RotaryConfig* message) {
  if (rotary.scaling != RotaryScaling::kCustom) message->set_theta(rotary.theta);
  message->set_dim(rotary.dim);
  message->set_is_interleaved(rotary.is_interleaved);
  switch (rotary.scaling) {
    case RotaryScaling::kNone:
      break;
    case RotaryScaling::kLinear:
      message->mutable_linear()->set_factor(rotary.factor);
      break;
    case RotaryScaling::kLlama3:
      message->mutable_llama3()->set_factor(rotary.factor);
      message->mutable_llama3()->set_low_freq_factor(rotary.low_freq_factor);
      message->mutable_llama3()->set_high_freq_factor(rotary.high_freq_factor);
      message->mutable_llama3()->set_original_max_positions(rotary.original_max_positions);
      break;
    case RotaryScaling::kYarn:
      message->mutable_yarn()->set_factor(rotary.factor);
      message->mutable_yarn()->set_original_max_positions(rotary.original_max_positions);
      message->mutable_yarn()->set_beta_fast(rotary.beta_fast);
      message->mutable_yarn()->set_beta_slow(rotary.beta_slow);
      message->mutable_yarn()->set_attention_factor(rotary.attention_factor);
      message->mutable_yarn()->set_truncate(rotary.truncate);
      break;
    case RotaryScaling::kCustom:
      message->mutable_custom()->mutable_inv_freq()->Assign(rotary.inv_freq.begin(),
                                                            rotary.inv_freq.end());
      message->mutable_custom()->set_attention_factor(rotary.attention_factor);
      break;
  }
}

RotaryConfig FromProto(const v1::RotaryConfig& message) {
  RotaryConfig rotary{
      .theta = message.theta(), .dim = message.dim(), .is_interleaved = message.is_interleaved()};
  if (message.has_linear()) {
    rotary.scaling = RotaryScaling::kLinear;
    rotary.factor = message.linear().factor();
  } else if (message.has_llama3()) {
    rotary.scaling = RotaryScaling::kLlama3;
    rotary.factor = message.llama3().factor();
    rotary.low_freq_factor = message.llama3().low_freq_factor();
    rotary.high_freq_factor = message.llama3().high_freq_factor();
    rotary.original_max_positions = message.llama3().original_max_positions();
  } else if (message.has_yarn()) {
    rotary.scaling = RotaryScaling::kYarn;
    rotary.factor = message.yarn().factor();
    rotary.original_max_positions = message.yarn().original_max_positions();
    rotary.beta_fast = message.yarn().beta_fast();
    rotary.beta_slow = message.yarn().beta_slow();
    rotary.attention_factor = message.yarn().attention_factor();
    rotary.truncate = message.yarn().truncate();
  } else if (message.has_custom()) {
    rotary.scaling = RotaryScaling::kCustom;
    rotary.inv_freq.assign(message.custom().inv_freq().begin(), message.custom().inv_freq().end());
    rotary.attention_factor = message.custom().attention_factor();
  }
  return rotary;
}

// Small enough for any limit on messages, large enough that their number costs nothing.
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

absl::Status AddUpload(v1::LayerTensorName name, const TensorView& tensor, const char* field,
                       std::vector<codec::OutgoingMessage>* messages) {
  if (!tensor.is_present()) return absl::OkStatus();
  ATTENTION_CLIENT_ASSIGN_OR_RETURN([[maybe_unused]] const codec::OutgoingMessage checked,
                                    ToWire(tensor, field));
  v1::CreateLayerRequest begin;
  begin.mutable_tensor()->set_name(name);
  v1::Tensor* header = begin.mutable_tensor()->mutable_tensor();
  header->set_dtype(internal::ToProto(tensor.dtype));
  header->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  messages->emplace_back(begin);
  const std::string_view bytes(static_cast<const char*>(tensor.data), tensor.num_bytes());
  for (std::size_t at = 0; at < bytes.size(); at += kChunkBytes) {
    v1::CreateLayerRequest chunk;
    chunk.set_chunk(std::string(bytes.substr(at, kChunkBytes)));
    messages->emplace_back(chunk);
  }
  return absl::OkStatus();
}

// Copied: the configuration stays small, and an upload's messages are plain protobuf.
absl::Status CopyTensor(const TensorView& tensor, const char* field, v1::Tensor* message) {
  ATTENTION_CLIENT_ASSIGN_OR_RETURN([[maybe_unused]] const codec::OutgoingMessage checked,
                                    ToWire(tensor, field));
  message->set_dtype(internal::ToProto(tensor.dtype));
  message->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  message->set_data(tensor.data, tensor.num_bytes());
  return absl::OkStatus();
}

absl::Status ToProto(const AttentionConfig& config, v1::AttentionConfig* message) {
  if (config.softmax_scale.has_value()) message->set_softmax_scale(*config.softmax_scale);
  message->set_soft_cap(config.soft_cap);
  message->set_is_causal(config.is_causal);
  if (config.window_left.has_value()) message->set_window_left(*config.window_left);
  if (config.window_right.has_value()) message->set_window_right(*config.window_right);
  message->set_sink_tokens(config.sink_tokens);
  if (config.alibi_slopes.is_present()) {
    ATTENTION_CLIENT_RETURN_IF_ERROR(CopyTensor(
        config.alibi_slopes, "config.attention.alibi_slopes", message->mutable_alibi_slopes()));
  }
  if (config.sink_logits.is_present()) {
    ATTENTION_CLIENT_RETURN_IF_ERROR(CopyTensor(config.sink_logits, "config.attention.sink_logits",
                                                message->mutable_sink_logits()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<codec::OutgoingMessage>> ToWire(const LayerOptions& options) {
  v1::CreateLayerRequest first;
  first.mutable_layer()->set_layer_id(options.layer_id);
  v1::LayerConfig* config = first.mutable_layer()->mutable_config();
  const LayerConfig& from = options.config;
  config->set_dtype(internal::ToProto(options.weights.w_q.dtype));
  config->set_model_dim(from.model_dim);
  config->set_context_dim(from.context_dim);
  config->set_output_dim(from.output_dim);
  config->set_num_q_heads(from.num_q_heads);
  config->set_num_kv_heads(from.num_kv_heads);
  config->set_head_dim_qk(from.head_dim_qk);
  config->set_head_dim_v(from.head_dim_v);
  ATTENTION_CLIENT_RETURN_IF_ERROR(ToProto(from.attention, config->mutable_attention()));
  if (from.rotary.has_value()) ToProto(*from.rotary, config->mutable_rotary());
  std::vector<codec::OutgoingMessage> messages;
  messages.emplace_back(first);
  const LayerWeights& w = options.weights;
  const std::tuple<const char*, v1::LayerTensorName, const TensorView*> tensors[] = {
      {"w_q", v1::LAYER_TENSOR_NAME_W_Q, &w.w_q}, {"w_k", v1::LAYER_TENSOR_NAME_W_K, &w.w_k},
      {"w_v", v1::LAYER_TENSOR_NAME_W_V, &w.w_v}, {"w_o", v1::LAYER_TENSOR_NAME_W_O, &w.w_o},
      {"b_q", v1::LAYER_TENSOR_NAME_B_Q, &w.b_q}, {"b_k", v1::LAYER_TENSOR_NAME_B_K, &w.b_k},
      {"b_v", v1::LAYER_TENSOR_NAME_B_V, &w.b_v}, {"b_o", v1::LAYER_TENSOR_NAME_B_O, &w.b_o}};
  for (const auto& [field, name, tensor] : tensors) {
    ATTENTION_CLIENT_RETURN_IF_ERROR(AddUpload(name, *tensor, field, &messages));
  }
  return messages;
}

absl::StatusOr<LayerInfo> FromProto(v1::Layer&& message) {
  LayerInfo info;
  info.layer_id = message.layer_id();
  const v1::LayerConfig& config = message.config();
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(info.dtype, internal::FromProto(config.dtype()));
  info.config.model_dim = config.model_dim();
  info.config.context_dim = config.context_dim();
  info.config.output_dim = config.output_dim();
  info.config.num_q_heads = config.num_q_heads();
  info.config.num_kv_heads = config.num_kv_heads();
  info.config.head_dim_qk = config.head_dim_qk();
  info.config.head_dim_v = config.head_dim_v();
  const v1::AttentionConfig& attention = config.attention();
  AttentionConfig& to = info.config.attention;
  if (attention.has_softmax_scale()) to.softmax_scale = attention.softmax_scale();
  to.soft_cap = attention.soft_cap();
  to.is_causal = attention.is_causal();
  if (attention.has_window_left()) to.window_left = attention.window_left();
  if (attention.has_window_right()) to.window_right = attention.window_right();
  to.sink_tokens = attention.sink_tokens();
  if (config.has_rotary()) info.config.rotary = FromProto(config.rotary());
  info.weight_bytes = message.weight_bytes();
  info.sha256 = message.sha256();
  info.create_time = absl::FromUnixSeconds(message.create_time().seconds()) +
                     absl::Nanoseconds(message.create_time().nanos());
  return info;
}

absl::StatusOr<ListLayersResult> FromProto(v1::ListLayersResponse&& message) {
  ListLayersResult result;
  for (v1::Layer& layer : *message.mutable_layers()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(LayerInfo info, FromProto(std::move(layer)));
    result.layers.push_back(std::move(info));
  }
  result.next_page_token = message.next_page_token();
  return result;
}

absl::StatusOr<codec::OutgoingMessage> ToWire(const ForwardRequest& request) {
  using Wire = v1::ForwardRequest;
  Wire small_fields;
  small_fields.set_layer_id(request.layer_id);
  small_fields.mutable_x_lens()->Assign(request.x_lens.begin(), request.x_lens.end());
  small_fields.mutable_context_lens()->Assign(request.context_lens.begin(),
                                              request.context_lens.end());
  small_fields.mutable_first_positions()->Assign(request.first_positions.begin(),
                                                 request.first_positions.end());
  for (const LayerSession& session : request.sessions) {
    v1::LayerSession* wire = small_fields.add_sessions();
    internal::ToProto(session.handle, wire->mutable_handle());
    wire->set_layer(session.layer);
    if (session.expected_position.has_value()) {
      wire->set_expected_position(*session.expected_position);
    }
  }
  codec::OutgoingMessage message(small_fields);
  ATTENTION_CLIENT_RETURN_IF_ERROR(
      AddTensor(request.x, "x", Wire::kXFieldNumber, nullptr, &message));
  ATTENTION_CLIENT_RETURN_IF_ERROR(
      AddTensor(request.context, "context", Wire::kContextFieldNumber, nullptr, &message));
  ATTENTION_CLIENT_RETURN_IF_ERROR(AddTensor(request.padding_mask, "padding_mask",
                                             Wire::kPaddingMaskFieldNumber, nullptr, &message));
  return message;
}

absl::StatusOr<ForwardResult> FromWire(const v1::ForwardResponse& message,
                                       const codec::ReceivedMessage& received) {
  ForwardResult result;
  if (message.has_output()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result.output,
                                      internal::FromWire(message.output(), received));
  }
  result.positions.assign(message.positions().begin(), message.positions().end());
  result.timing = internal::FromProto(message.timing());
  return result;
}

}  // namespace attention::client::internal
