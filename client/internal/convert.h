// Between the SDK's structs and the wire's messages.
//
// ToProto copies tensor bytes once, from the caller's memory into the message, and refuses only
// what it could not read safely (INVALID_ARGUMENT); all else is the server's to judge. FromProto
// moves tensor bytes out of the message and checks that they are what their shape says (INTERNAL).
#ifndef ATTENTION_CLIENT_INTERNAL_CONVERT_H_
#define ATTENTION_CLIENT_INTERNAL_CONVERT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/v1/attention_service.pb.h"
#include "attention/v1/server_service.pb.h"
#include "attention/v1/session_service.pb.h"
#include "client/attention.h"
#include "client/server_info.h"
#include "client/session_types.h"

namespace attention::client::internal {

v1::DType ToProto(DType dtype);
absl::StatusOr<DType> FromProto(v1::DType dtype);

// Durations beyond what the message can hold are clamped.
void ToProto(absl::Duration duration, google::protobuf::Duration* message);
absl::Duration FromProto(const google::protobuf::Duration& message);

// `field` names the tensor in errors.
absl::Status ToProto(const TensorView& tensor, const std::string& field, v1::Tensor* message);
absl::StatusOr<Tensor> FromProto(v1::Tensor&& message);
Timing FromProto(const v1::Timing& message);

absl::Status ToProto(const AttentionConfig& config, v1::AttentionConfig* message);
absl::Status ToProto(const AttendRequest& request, v1::AttendRequest* message);
absl::StatusOr<AttendResult> FromProto(v1::AttendResponse&& message);
absl::StatusOr<WeightsBlock> FromProto(v1::WeightsBlock&& message);
void ToProto(const ReturnOptions& returns, v1::ReturnOptions* message);

void ToProto(const SessionHandle& handle, v1::SessionHandle* message);
void ToProto(const SessionOptions& options, v1::CreateSessionRequest* message);
absl::StatusOr<SessionInfo> FromProto(v1::Session&& message);
absl::StatusOr<ListSessionsResult> FromProto(v1::ListSessionsResponse&& message);
absl::Status ToProto(const StepRequest& request, v1::StepRequest* message);
absl::StatusOr<StepResult> FromProto(v1::StepResponse&& message);

absl::StatusOr<ServerInfo> FromProto(v1::GetServerInfoResponse&& message);
absl::Status ToProto(const ExplainRequest& request, v1::ExplainRequest* message);
absl::StatusOr<ExplainResult> FromProto(v1::ExplainResponse&& message);

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_CONVERT_H_
