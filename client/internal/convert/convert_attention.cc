#include <memory>
#include <new>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/convert/convert.h"
#include "proto/codec/dtypes.h"

namespace attention::client::internal {
namespace {

// The range of google.protobuf.Duration, about 10,000 years.
constexpr std::int64_t kMaxDurationSeconds = 315576000000;

// Where results lie: on the boundary that vector instructions and caches like best.
constexpr std::align_val_t kResultAlignment{64};

// Not filled with zeros: every byte is about to be written.
std::shared_ptr<char> NewResultMemory(std::size_t num_bytes) {
  return {static_cast<char*>(::operator new(num_bytes, kResultAlignment)),
          [](char* memory) { ::operator delete(memory, kResultAlignment); }};
}

}  // namespace

// The SDK has one more dtype than the server computes in, that of masks.
v1::DType ToProto(DType dtype) {
  return dtype == DType::kBool ? v1::DTYPE_BOOL : codec::DTypeToWire(dtype);
}

absl::StatusOr<DType> FromProto(v1::DType dtype) {
  if (dtype == v1::DTYPE_BOOL) return DType::kBool;
  if (const auto known = codec::DTypeFromWire<DType>(dtype); known.has_value()) return *known;
  return absl::InternalError(
      absl::StrCat("the server sent a dtype unknown here: ", static_cast<int>(dtype)));
}

void ToProto(absl::Duration duration, google::protobuf::Duration* message) {
  const absl::Duration limit = absl::Seconds(kMaxDurationSeconds);
  if (duration > limit) duration = limit;
  if (duration < -limit) duration = -limit;
  absl::Duration rest;
  message->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &rest));
  message->set_nanos(static_cast<std::int32_t>(absl::ToInt64Nanoseconds(rest)));
}

absl::Duration FromProto(const google::protobuf::Duration& message) {
  return absl::Seconds(message.seconds()) + absl::Nanoseconds(message.nanos());
}

absl::StatusOr<codec::OutgoingMessage> ToWire(const TensorView& tensor, const std::string& field,
                                              const TensorRefs* refs) {
  if (tensor.num_elements() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".shape: [", absl::StrJoin(tensor.shape, ", "), "] is negative or too large"));
  }
  const std::size_t num_bytes = tensor.num_bytes();
  if (num_bytes > 0 && tensor.data == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".data: null, or a span whose size is not the product of shape [",
                     absl::StrJoin(tensor.shape, ", "), "]"));
  }
  v1::Tensor header;
  header.set_dtype(ToProto(tensor.dtype));
  header.mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  if (refs != nullptr) {
    if (std::optional<v1::SharedMemoryRef> ref = refs->RefTo(tensor); ref.has_value()) {
      *header.mutable_shared_memory() = *std::move(ref);
      return codec::OutgoingMessage(header);
    }
  }
  return codec::OutgoingMessage(header,
                                grpc::Slice(tensor.data, num_bytes, grpc::Slice::STATIC_SLICE));
}

absl::Status AddTensor(const TensorView& tensor, const std::string& field, int field_number,
                       const TensorRefs* refs, codec::OutgoingMessage* message) {
  if (!tensor.is_present()) return absl::OkStatus();
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(codec::OutgoingMessage made, ToWire(tensor, field, refs));
  message->Add(field_number, std::move(made));
  return absl::OkStatus();
}

absl::StatusOr<Tensor> FromWire(const v1::Tensor& message, const codec::ReceivedMessage& received,
                                const TensorRefs* refs) {
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(const DType dtype, FromProto(message.dtype()));
  Shape shape(message.shape().begin(), message.shape().end());
  if (message.has_shared_memory() && refs != nullptr) {
    return refs->Read(message.shared_memory(), dtype, std::move(shape));
  }
  const codec::TensorBytes bytes = received.Data(message);
  const std::int64_t elements = NumElements(shape);
  if (elements < 0 || static_cast<std::uint64_t>(elements) * ElementBytes(dtype) !=
                          static_cast<std::uint64_t>(bytes.size())) {
    return absl::InternalError(absl::StrCat("the server sent ", bytes.size(), " bytes for a ",
                                            std::string(DTypeName(dtype)), " tensor of shape [",
                                            absl::StrJoin(shape, ", "), "]"));
  }
  std::shared_ptr<char> memory = NewResultMemory(bytes.size());
  bytes.CopyTo(memory.get());
  const std::string_view view(memory.get(), bytes.size());
  return Tensor(dtype, std::move(shape), view, std::move(memory));
}

Timing FromProto(const v1::Timing& message) {
  return {.queue = FromProto(message.queue()),
          .batch_formation = FromProto(message.batch_formation()),
          .compute = FromProto(message.compute()),
          .batch_size = message.batch_size(),
          .wire_in = FromProto(message.wire_in()),
          .wire_out = FromProto(message.wire_out()),
          .copied_bytes = message.copied_bytes()};
}

absl::StatusOr<codec::OutgoingMessage> ToWire(const AttentionConfig& config,
                                              const TensorRefs* refs) {
  v1::AttentionConfig small_fields;
  if (config.softmax_scale.has_value()) small_fields.set_softmax_scale(*config.softmax_scale);
  small_fields.set_soft_cap(config.soft_cap);
  small_fields.set_is_causal(config.is_causal);
  if (config.window_left.has_value()) small_fields.set_window_left(*config.window_left);
  if (config.window_right.has_value()) small_fields.set_window_right(*config.window_right);
  small_fields.set_sink_tokens(config.sink_tokens);
  codec::OutgoingMessage message(small_fields);
  ATTENTION_CLIENT_RETURN_IF_ERROR(AddTensor(config.alibi_slopes, "config.alibi_slopes",
                                             v1::AttentionConfig::kAlibiSlopesFieldNumber, refs,
                                             &message));
  ATTENTION_CLIENT_RETURN_IF_ERROR(AddTensor(config.sink_logits, "config.sink_logits",
                                             v1::AttentionConfig::kSinkLogitsFieldNumber, refs,
                                             &message));
  return message;
}

void ToProto(const ReturnOptions& returns, v1::ReturnOptions* message) {
  message->set_lse(returns.lse);
  message->set_column_sums(returns.column_sums);
  message->set_weights(returns.weights);
}

absl::StatusOr<codec::OutgoingMessage> ToWire(const AttendRequest& request, bool weights,
                                              const TensorRefs* refs) {
  using Wire = v1::AttendRequest;
  Wire small_fields;
  small_fields.mutable_q_lens()->Assign(request.q_lens.begin(), request.q_lens.end());
  small_fields.mutable_kv_lens()->Assign(request.kv_lens.begin(), request.kv_lens.end());
  small_fields.mutable_first_query_positions()->Assign(request.first_query_positions.begin(),
                                                       request.first_query_positions.end());
  ToProto(request.returns, small_fields.mutable_returns());
  if (weights) small_fields.mutable_returns()->set_weights(true);
  small_fields.set_value_is_key_prefix(request.value_is_key_prefix);
  small_fields.set_head_dim_v(request.head_dim_v);
  if (refs != nullptr) {
    if (auto ref = refs->RefToOutput(0); ref.has_value()) {
      *small_fields.mutable_output_to() = *std::move(ref);
    }
  }
  codec::OutgoingMessage message(small_fields);
  const auto add = [&](const TensorView& tensor, const char* field, int field_number) {
    return AddTensor(tensor, field, field_number, refs, &message);
  };
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(request.q, "q", Wire::kQFieldNumber));
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(request.k, "k", Wire::kKFieldNumber));
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(request.v, "v", Wire::kVFieldNumber));
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(codec::OutgoingMessage config, ToWire(request.config, refs));
  message.Add(Wire::kConfigFieldNumber, std::move(config));
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(request.bias, "bias", Wire::kBiasFieldNumber));
  ATTENTION_CLIENT_RETURN_IF_ERROR(add(request.mask, "mask", Wire::kMaskFieldNumber));
  return message;
}

absl::StatusOr<AttendResult> FromWire(const v1::AttendResponse& message,
                                      const codec::ReceivedMessage& received,
                                      const TensorRefs* refs) {
  AttendResult result;
  if (message.has_output()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result.output, FromWire(message.output(), received, refs));
  }
  if (message.has_lse()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result.lse, FromWire(message.lse(), received));
  }
  if (message.has_column_sums()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(result.column_sums,
                                      FromWire(message.column_sums(), received));
  }
  for (const v1::WeightsBlock& block : message.weights()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(Tensor weights, FromWire(block.weights(), received));
    result.weights.push_back(std::move(weights));
  }
  result.timing = FromProto(message.timing());
  return result;
}

absl::StatusOr<WeightsBlock> FromWire(const v1::WeightsBlock& message,
                                      const codec::ReceivedMessage& received) {
  WeightsBlock block{.sequence = message.sequence(), .q_begin = message.q_begin(), .weights = {}};
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(block.weights, FromWire(message.weights(), received));
  return block;
}

}  // namespace attention::client::internal
