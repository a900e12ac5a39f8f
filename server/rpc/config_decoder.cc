#include "server/rpc/config_decoder.h"

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "server/base/status_macros.h"
#include "server/rpc/tensor_decoder.h"

namespace attention::server {
namespace {

absl::Status DecodeBound(absl::string_view field, bool is_present, std::int64_t value,
                         std::int64_t* bound) {
  if (!is_present) return absl::OkStatus();
  if (value < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.", field, " is ", value, ", expected 0 or more, or absent"));
  }
  *bound = value;
  return absl::OkStatus();
}

absl::Status CheckPlaneDimension(absl::string_view field, const v1::Tensor& tensor, int axis,
                                 std::int64_t actual, std::int64_t expected, bool may_be_shared) {
  if (actual == expected || (may_be_shared && actual == 1)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, ".shape is ", ShapeText(tensor), ", expected ",
      may_be_shared && expected != 1 ? "1 or " : "", expected, " at dimension ", axis));
}

absl::Status CheckPlaneDType(absl::string_view field, const v1::Tensor& tensor, PlaneKind kind,
                             DType* dtype) {
  if (kind == PlaneKind::kBias) {
    ATTENTION_ASSIGN_OR_RETURN(*dtype, DecodeDType(absl::StrCat(field, ".dtype"), tensor.dtype()));
    return absl::OkStatus();
  }
  if (tensor.dtype() == v1::DTYPE_BOOL) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".dtype is ", v1::DType_Name(tensor.dtype()), ", expected DTYPE_BOOL"));
}

}  // namespace

absl::Status DecodeConfig(const v1::AttentionConfig& config, AttentionParams* params) {
  params->softmax_scale = config.has_softmax_scale() ? config.softmax_scale()
                                                     : DefaultSoftmaxScale(params->head_dim_qk);
  params->soft_cap = config.soft_cap();
  params->is_causal = config.is_causal();
  ATTENTION_RETURN_IF_ERROR(DecodeBound("window_left", config.has_window_left(),
                                        config.window_left(), &params->window_left));
  ATTENTION_RETURN_IF_ERROR(DecodeBound("window_right", config.has_window_right(),
                                        config.window_right(), &params->window_right));
  params->sink_tokens = config.sink_tokens();
  return ValidateParams(*params);
}

absl::Status DecodeHeadVectors(const v1::AttentionConfig& config, RequestTensors& tensors,
                               AttentionTask* task) {
  const std::int64_t num_q_heads = task->params.num_q_heads;
  if (config.has_alibi_slopes()) {
    ATTENTION_RETURN_IF_ERROR(
        CheckVector("config.alibi_slopes", config.alibi_slopes(), num_q_heads, tensors));
    task->alibi_slopes = reinterpret_cast<const float*>(tensors.Place(config.alibi_slopes()));
  }
  if (config.has_sink_logits()) {
    ATTENTION_RETURN_IF_ERROR(
        CheckVector("config.sink_logits", config.sink_logits(), num_q_heads, tensors));
    task->sink_logits = reinterpret_cast<const float*>(tensors.Place(config.sink_logits()));
  }
  return absl::OkStatus();
}

absl::StatusOr<DecodedPlane> DecodePlane(absl::string_view field, const v1::Tensor& tensor,
                                         PlaneKind kind, const PlaneLimits& limits,
                                         RequestTensors& tensors) {
  DecodedPlane plane;
  ATTENTION_RETURN_IF_ERROR(CheckPlaneDType(field, tensor, kind, &plane.dtype));
  ATTENTION_RETURN_IF_ERROR(CheckTensor(field, tensor, tensors));
  const int rank = tensor.shape_size();
  const int max_rank = limits.num_sequences > 1 ? 4 : 3;
  if (rank < 2 || rank > 4) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".shape is ", ShapeText(tensor), ", expected rank 2 to ", max_rank));
  }
  const std::int64_t batch = rank == 4 ? tensor.shape(0) : 1;
  plane.shape = {rank >= 3 ? tensor.shape(rank - 3) : 1, tensor.shape(rank - 2),
                 tensor.shape(rank - 1)};
  ATTENTION_RETURN_IF_ERROR(
      CheckPlaneDimension(field, tensor, 0, batch, limits.num_sequences, true));
  ATTENTION_RETURN_IF_ERROR(CheckPlaneDimension(field, tensor, rank - 3, plane.shape.num_heads,
                                                limits.num_q_heads, true));
  ATTENTION_RETURN_IF_ERROR(
      CheckPlaneDimension(field, tensor, rank - 2, plane.shape.q_len, limits.q_len, false));
  if (limits.kv_len) {
    ATTENTION_RETURN_IF_ERROR(
        CheckPlaneDimension(field, tensor, rank - 1, plane.shape.kv_len, *limits.kv_len, false));
  }
  const std::int64_t plane_size = plane.shape.q_len * plane.shape.kv_len;
  plane.head_stride = plane.shape.num_heads == 1 ? 0 : plane_size;
  plane.batch_stride = batch == 1 ? 0 : plane_size * plane.shape.num_heads;
  plane.data = tensors.Place(tensor);
  return plane;
}

void SetBias(const DecodedPlane& plane, std::int64_t index, AttentionTask* task) {
  const auto bytes = static_cast<std::int64_t>(DTypeBytes(plane.dtype));
  task->bias = {plane.data + index * plane.batch_stride * bytes, plane.dtype, plane.head_stride,
                plane.shape.kv_len};
}

void SetMask(const DecodedPlane& plane, std::int64_t index, AttentionTask* task) {
  task->mask = {reinterpret_cast<const std::uint8_t*>(plane.data) + index * plane.batch_stride,
                plane.head_stride, plane.shape.kv_len};
}

}  // namespace attention::server
