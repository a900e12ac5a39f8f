#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/internal/convert.h"
#include "client/internal/status_macros.h"

namespace attention::client::internal {
namespace {

// The range of google.protobuf.Duration, about 10,000 years.
constexpr int64_t kMaxDurationSeconds = 315576000000;

// Optional tensors: what is absent stays absent on the wire.
template <typename Mutable>
absl::Status MaybeToProto(const TensorView& tensor, const std::string& field,
                          Mutable mutable_field) {
  if (!tensor.is_present()) return absl::OkStatus();
  return ToProto(tensor, field, mutable_field());
}

}  // namespace

v1::DType ToProto(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return v1::DTYPE_FLOAT32;
    case DType::kFloat16:
      return v1::DTYPE_FLOAT16;
    case DType::kBFloat16:
      return v1::DTYPE_BFLOAT16;
    case DType::kBool:
      return v1::DTYPE_BOOL;
    case DType::kInt8:
      return v1::DTYPE_INT8;
  }
  return v1::DTYPE_UNSPECIFIED;
}

absl::StatusOr<DType> FromProto(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return DType::kFloat32;
    case v1::DTYPE_FLOAT16:
      return DType::kFloat16;
    case v1::DTYPE_BFLOAT16:
      return DType::kBFloat16;
    case v1::DTYPE_BOOL:
      return DType::kBool;
    case v1::DTYPE_INT8:
      return DType::kInt8;
    default:
      return absl::InternalError(
          absl::StrCat("the server sent a dtype unknown here: ", static_cast<int>(dtype)));
  }
}

void ToProto(absl::Duration duration, google::protobuf::Duration* message) {
  const absl::Duration limit = absl::Seconds(kMaxDurationSeconds);
  if (duration > limit) duration = limit;
  if (duration < -limit) duration = -limit;
  absl::Duration rest;
  message->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &rest));
  message->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
}

absl::Duration FromProto(const google::protobuf::Duration& message) {
  return absl::Seconds(message.seconds()) + absl::Nanoseconds(message.nanos());
}

absl::Status ToProto(const TensorView& tensor, const std::string& field, v1::Tensor* message) {
  if (tensor.num_elements() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".shape: [", absl::StrJoin(tensor.shape, ", "), "] is negative or too large"));
  }
  const size_t num_bytes = tensor.num_bytes();
  if (num_bytes > 0 && tensor.data == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".data: null, or a span whose size is not the product of shape [",
                     absl::StrJoin(tensor.shape, ", "), "]"));
  }
  message->set_dtype(ToProto(tensor.dtype));
  message->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  if (num_bytes > 0) message->set_data(tensor.data, num_bytes);
  return absl::OkStatus();
}

absl::StatusOr<Tensor> FromProto(v1::Tensor&& message) {
  ATTN_ASSIGN_OR_RETURN(const DType dtype, FromProto(message.dtype()));
  Shape shape(message.shape().begin(), message.shape().end());
  const int64_t elements = NumElements(shape);
  if (elements < 0 || static_cast<uint64_t>(elements) * ElementBytes(dtype) !=
                          static_cast<uint64_t>(message.data().size())) {
    return absl::InternalError(absl::StrCat("the server sent ", message.data().size(),
                                            " bytes for a ", std::string(DTypeName(dtype)),
                                            " tensor of shape [", absl::StrJoin(shape, ", "), "]"));
  }
  return Tensor(dtype, std::move(shape), std::move(*message.mutable_data()));
}

Timing FromProto(const v1::Timing& message) {
  return {.queue = FromProto(message.queue()),
          .batch_formation = FromProto(message.batch_formation()),
          .compute = FromProto(message.compute()),
          .batch_size = message.batch_size()};
}

absl::Status ToProto(const AttentionConfig& config, v1::AttentionConfig* message) {
  if (config.softmax_scale.has_value()) message->set_softmax_scale(*config.softmax_scale);
  message->set_soft_cap(config.soft_cap);
  message->set_is_causal(config.is_causal);
  if (config.window_left.has_value()) message->set_window_left(*config.window_left);
  if (config.window_right.has_value()) message->set_window_right(*config.window_right);
  message->set_sink_tokens(config.sink_tokens);
  ATTN_RETURN_IF_ERROR(MaybeToProto(config.alibi_slopes, "config.alibi_slopes",
                                    [&] { return message->mutable_alibi_slopes(); }));
  return MaybeToProto(config.sink_logits, "config.sink_logits",
                      [&] { return message->mutable_sink_logits(); });
}

void ToProto(const ReturnOptions& returns, v1::ReturnOptions* message) {
  message->set_lse(returns.lse);
  message->set_column_sums(returns.column_sums);
}

absl::Status ToProto(const AttendRequest& request, v1::AttendRequest* message) {
  ATTN_RETURN_IF_ERROR(MaybeToProto(request.q, "q", [&] { return message->mutable_q(); }));
  ATTN_RETURN_IF_ERROR(MaybeToProto(request.k, "k", [&] { return message->mutable_k(); }));
  ATTN_RETURN_IF_ERROR(MaybeToProto(request.v, "v", [&] { return message->mutable_v(); }));
  message->mutable_q_lens()->Assign(request.q_lens.begin(), request.q_lens.end());
  message->mutable_kv_lens()->Assign(request.kv_lens.begin(), request.kv_lens.end());
  message->mutable_first_query_positions()->Assign(request.first_query_positions.begin(),
                                                   request.first_query_positions.end());
  ATTN_RETURN_IF_ERROR(ToProto(request.config, message->mutable_config()));
  ATTN_RETURN_IF_ERROR(MaybeToProto(request.bias, "bias", [&] { return message->mutable_bias(); }));
  ATTN_RETURN_IF_ERROR(MaybeToProto(request.mask, "mask", [&] { return message->mutable_mask(); }));
  ToProto(request.returns, message->mutable_returns());
  return absl::OkStatus();
}

absl::StatusOr<AttendResult> FromProto(v1::AttendResponse&& message) {
  AttendResult result;
  if (message.has_output()) {
    ATTN_ASSIGN_OR_RETURN(result.output, FromProto(std::move(*message.mutable_output())));
  }
  if (message.has_lse()) {
    ATTN_ASSIGN_OR_RETURN(result.lse, FromProto(std::move(*message.mutable_lse())));
  }
  if (message.has_column_sums()) {
    ATTN_ASSIGN_OR_RETURN(result.column_sums, FromProto(std::move(*message.mutable_column_sums())));
  }
  result.timing = FromProto(message.timing());
  return result;
}

absl::StatusOr<WeightsBlock> FromProto(v1::WeightsBlock&& message) {
  WeightsBlock block{.sequence = message.sequence(), .q_begin = message.q_begin(), .weights = {}};
  ATTN_ASSIGN_OR_RETURN(block.weights, FromProto(std::move(*message.mutable_weights())));
  return block;
}

}  // namespace attention::client::internal
