// Between the SDK's structs and the wire's messages.
//
// Messages with tensors go through proto/codec. ToWire refers to the caller's tensors, which must
// live until the message is serialised, in one piece, and refuses only what it could not read
// safely (INVALID_ARGUMENT); all else is the server's to judge. FromWire copies tensor bytes from
// where they were received, once, and checks that they are what their shape says (INTERNAL).
// With `refs`, a tensor that has a reference is sent as that, and a result that the server wrote to
// one is not copied.
// Messages without tensors go through ToProto and FromProto.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/client/attention.h"
#include "attention/client/layer_types.h"
#include "attention/client/server_info.h"
#include "attention/client/session_types.h"
#include "attention/v1/attention_service.pb.h"
#include "attention/v1/layer_service.pb.h"
#include "attention/v1/server_service.pb.h"
#include "attention/v1/session_service.pb.h"
#include "client/internal/convert/tensor_refs.h"
#include "proto/codec/outgoing_message.h"
#include "proto/codec/received_message.h"

namespace attention::client::internal {

v1::DType ToProto(DType dtype);
absl::StatusOr<DType> FromProto(v1::DType dtype);

// Durations beyond what the message can hold are clamped.
void ToProto(absl::Duration duration, google::protobuf::Duration* message);
absl::Duration FromProto(const google::protobuf::Duration& message);

// `field` names the tensor in errors.
absl::StatusOr<codec::OutgoingMessage> ToWire(const TensorView& tensor, const std::string& field,
                                              const TensorRefs* refs = nullptr);
// Adds the tensor to a message as its field; what is absent stays absent on the wire.
absl::Status AddTensor(const TensorView& tensor, const std::string& field, int field_number,
                       const TensorRefs* refs, codec::OutgoingMessage* message);
absl::StatusOr<Tensor> FromWire(const v1::Tensor& message, const codec::ReceivedMessage& received,
                                const TensorRefs* refs = nullptr);
Timing FromProto(const v1::Timing& message);

absl::StatusOr<codec::OutgoingMessage> ToWire(const AttentionConfig& config,
                                              const TensorRefs* refs = nullptr);
// `weights`: asks for the attention weights, too.
absl::StatusOr<codec::OutgoingMessage> ToWire(const AttendRequest& request, bool weights = false,
                                              const TensorRefs* refs = nullptr);
absl::StatusOr<AttendResult> FromWire(const v1::AttendResponse& message,
                                      const codec::ReceivedMessage& received,
                                      const TensorRefs* refs = nullptr);
absl::StatusOr<WeightsBlock> FromWire(const v1::WeightsBlock& message,
                                      const codec::ReceivedMessage& received);
void ToProto(const ReturnOptions& returns, v1::ReturnOptions* message);

void ToProto(const SessionHandle& handle, v1::SessionHandle* message);
void ToProto(const SessionOptions& options, v1::CreateSessionRequest* message);
// All but the page token, which is each target's own.
void ToProto(const ListSessionsRequest& request, v1::ListSessionsRequest* message);
void ToProto(const ForkSessionRequest& request, v1::ForkSessionRequest* message);
void ToProto(const ReorderSessionsRequest& request, v1::ReorderSessionsRequest* message);
// INVALID_ARGUMENT: tokens that do not ascend, or that are not among num_tokens, which is given.
absl::StatusOr<v1::KeepTokensRequest> ToProto(const KeepTokensRequest& request);
absl::StatusOr<SessionInfo> FromProto(v1::Session&& message);
absl::StatusOr<ListSessionsResult> FromProto(v1::ListSessionsResponse&& message);
absl::StatusOr<codec::OutgoingMessage> ToWire(const StepRequest& request,
                                              const TensorRefs* refs = nullptr);
absl::StatusOr<StepResult> FromWire(const v1::StepResponse& message,
                                    const codec::ReceivedMessage& received,
                                    const TensorRefs* refs = nullptr);

absl::StatusOr<KeysValues> FromWire(const v1::GetKeysValuesResponse& message,
                                    const codec::ReceivedMessage& received);

// The messages of an upload; they hold copies of the tensors' bytes.
absl::StatusOr<std::vector<codec::OutgoingMessage>> ToWire(const LayerOptions& options);
absl::StatusOr<LayerInfo> FromProto(v1::Layer&& message);
absl::StatusOr<ListLayersResult> FromProto(v1::ListLayersResponse&& message);
absl::StatusOr<codec::OutgoingMessage> ToWire(const ForwardRequest& request);
absl::StatusOr<ForwardResult> FromWire(const v1::ForwardResponse& message,
                                       const codec::ReceivedMessage& received);

absl::StatusOr<ServerInfo> FromProto(v1::GetServerInfoResponse&& message);
absl::StatusOr<codec::OutgoingMessage> ToWire(const ExplainRequest& request);
absl::StatusOr<ExplainResult> FromProto(v1::ExplainResponse&& message);

}  // namespace attention::client::internal
