#include "server/wire/config_decoder.h"

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "server/base/at_field.h"
#include "server/base/status_macros.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

absl::Status DecodeBound(absl::string_view field, bool is_present, std::int64_t value,
                         std::int64_t* bound) {
  if (!is_present) return absl::OkStatus();
  if (value < 0 || value > kMaxPosition) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is ", value, ", expected 0 to ", kMaxPosition, ", or absent"));
  }
  *bound = value;
  return absl::OkStatus();
}

absl::Status CheckAxis(absl::string_view field, const v1::Tensor& tensor, int axis,
                       std::int64_t actual, std::int64_t expected) {
  constexpr absl::string_view kLayouts[] = {"[queries, keys]", "[heads, queries, keys]",
                                            "[sequences, heads, queries, keys]"};
  if (actual == expected || actual == 1) return absl::OkStatus();
  return InvalidAxis(field, tensor, axis, kLayouts[tensor.shape_size() - 2],
                     expected == 1 ? "1" : absl::StrCat("1 or ", expected));
}

absl::Status CheckScoreDType(absl::string_view field, const v1::Tensor& tensor, BiasOrMaskKind kind,
                             DType* dtype) {
  if (kind == BiasOrMaskKind::kMask) return CheckBoolDType(field, tensor.dtype());
  ATTENTION_ASSIGN_OR_RETURN(*dtype, DecodeDType(absl::StrCat(field, ".dtype"), tensor.dtype()));
  return absl::OkStatus();
}

// Sets the strides of a dense [batch, heads, queries, keys].
void SetStrides(std::int64_t batch, DecodedBiasOrMask* decoded) {
  if (batch == 0) return;  // nobody reads it, and the other axes may have any size
  const BiasOrMaskShape& shape = decoded->shape;
  const auto stride = [](std::int64_t count, std::int64_t elements) {
    return count == 1 ? 0 : elements;
  };
  decoded->key_stride = stride(shape.kv_len, 1);
  decoded->row_stride = stride(shape.q_len, shape.kv_len);
  decoded->head_stride = stride(shape.num_heads, shape.q_len * shape.kv_len);
  decoded->batch_stride = stride(batch, shape.num_heads * shape.q_len * shape.kv_len);
}

}  // namespace

absl::Status DecodeConfig(absl::string_view field, const v1::AttentionConfig& config,
                          AttentionParams* params) {
  params->softmax_scale = config.has_softmax_scale() ? config.softmax_scale()
                                                     : DefaultSoftmaxScale(params->head_dim_qk);
  params->soft_cap = config.soft_cap();
  params->is_causal = config.is_causal();
  ATTENTION_RETURN_IF_ERROR(DecodeBound(absl::StrCat(field, ".window_left"),
                                        config.has_window_left(), config.window_left(),
                                        &params->window_left));
  ATTENTION_RETURN_IF_ERROR(DecodeBound(absl::StrCat(field, ".window_right"),
                                        config.has_window_right(), config.window_right(),
                                        &params->window_right));
  params->sink_tokens = config.sink_tokens();
  return AtField(field, ValidateScores(*params));
}

absl::Status DecodeHeadVectors(absl::string_view field, const v1::AttentionConfig& config,
                               RequestTensors& tensors, AttentionTask* task) {
  const std::int64_t num_q_heads = task->params.num_q_heads;
  if (config.has_alibi_slopes()) {
    ATTENTION_ASSIGN_OR_RETURN(task->alibi_slopes,
                               PlaceHeadVector(absl::StrCat(field, ".alibi_slopes"),
                                               config.alibi_slopes(), num_q_heads, tensors));
  }
  if (config.has_sink_logits()) {
    ATTENTION_ASSIGN_OR_RETURN(task->sink_logits,
                               PlaceHeadVector(absl::StrCat(field, ".sink_logits"),
                                               config.sink_logits(), num_q_heads, tensors));
  }
  return absl::OkStatus();
}

absl::StatusOr<DecodedBiasOrMask> DecodeBiasOrMask(absl::string_view field,
                                                   const v1::Tensor& tensor, BiasOrMaskKind kind,
                                                   const BiasOrMaskLimits& limits,
                                                   RequestTensors& tensors) {
  DecodedBiasOrMask decoded;
  ATTENTION_RETURN_IF_ERROR(CheckScoreDType(field, tensor, kind, &decoded.dtype));
  ATTENTION_RETURN_IF_ERROR(CheckTensor(field, tensor, tensors));
  const int rank = tensor.shape_size();
  if (rank < 2 || rank > 4) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".shape is ", ShapeText(tensor),
                     ", expected rank 2 to 4 of [sequences, heads, queries, keys]"));
  }
  const std::int64_t batch = rank == 4 ? tensor.shape(0) : 1;
  decoded.shape = {rank >= 3 ? tensor.shape(rank - 3) : 1, tensor.shape(rank - 2),
                   tensor.shape(rank - 1)};
  ATTENTION_RETURN_IF_ERROR(CheckAxis(field, tensor, 0, batch, limits.num_sequences));
  ATTENTION_RETURN_IF_ERROR(
      CheckAxis(field, tensor, rank - 3, decoded.shape.num_heads, limits.num_q_heads));
  ATTENTION_RETURN_IF_ERROR(CheckAxis(field, tensor, rank - 2, decoded.shape.q_len, limits.q_len));
  if (limits.kv_len) {
    ATTENTION_RETURN_IF_ERROR(
        CheckAxis(field, tensor, rank - 1, decoded.shape.kv_len, *limits.kv_len));
  }
  SetStrides(batch, &decoded);
  decoded.data = tensors.Place(tensor);
  if (kind == BiasOrMaskKind::kMask) {
    ATTENTION_RETURN_IF_ERROR(CheckBools(field, tensor, decoded.data));
  }
  return decoded;
}

void SetBias(const DecodedBiasOrMask& decoded, std::int64_t index, AttentionTask* task) {
  const auto bytes = static_cast<std::int64_t>(DTypeBytes(decoded.dtype));
  task->bias = {decoded.data + index * decoded.batch_stride * bytes, decoded.dtype,
                decoded.head_stride, decoded.row_stride, decoded.key_stride};
}

void SetMask(const DecodedBiasOrMask& decoded, std::int64_t index, AttentionTask* task) {
  task->mask = {reinterpret_cast<const std::uint8_t*>(decoded.data) + index * decoded.batch_stride,
                decoded.head_stride, decoded.row_stride, decoded.key_stride};
}

}  // namespace attention::server
