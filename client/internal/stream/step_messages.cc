#include "client/internal/stream/step_messages.h"

#include "client/internal/convert/convert.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/shared_memory/shared_memory_request.h"

namespace attention::client::internal {

absl::StatusOr<grpc::ByteBuffer> StepMessages::Serialize(
    std::uint64_t id, absl::StatusOr<codec::OutgoingMessage> wire) const {
  if (!wire.ok()) return std::move(wire).status();
  v1::StepStreamRequest small_fields;
  small_fields.set_request_id(id);
  codec::OutgoingMessage message(small_fields);
  message.Add(v1::StepStreamRequest::kRequestFieldNumber, *std::move(wire));
  return transport_->Serialize(std::move(message));
}

absl::StatusOr<grpc::ByteBuffer> StepMessages::Make(std::uint64_t id, const StepRequest& request,
                                                    PendingStep& step) const {
  step.shared = ShareRequest(
      shared_memory_, target_, request,
      [](const StepRequest& given, const TensorRefs* refs) { return ToWire(given, refs); });
  absl::StatusOr<grpc::ByteBuffer> bytes =
      Serialize(id, step.shared != nullptr ? step.shared->MessageFor(target_) : ToWire(request));
  // Only where memory is shared, requests may have to be sent again.
  if (bytes.ok() && shared_memory_ != nullptr && shared_memory_->has_memory()) {
    step.layers = PendingSteps::LayersOf(request);
    if (step.shared == nullptr) step.bytes = *bytes;
  }
  return bytes;
}

absl::StatusOr<grpc::ByteBuffer> StepMessages::Make(std::uint64_t id,
                                                    const SessionOptions& request) const {
  v1::StepStreamRequest message;
  message.set_request_id(id);
  ToProto(request, message.mutable_create_session());
  return transport_->Serialize(codec::OutgoingMessage(message));
}

absl::StatusOr<grpc::ByteBuffer> StepMessages::MakeAgain(std::uint64_t id,
                                                         PendingStep& step) const {
  if (step.shared == nullptr) return step.bytes;
  return Serialize(id, step.shared->MessageFor(target_));
}

StepMessages::Answer StepMessages::Read(const v1::StepStreamResponse& response,
                                        const codec::ReceivedMessage& received,
                                        PendingStep& step) const {
  const TensorRefs* refs = step.shared != nullptr ? step.shared->refs() : nullptr;
  absl::StatusOr<StepResult> result = response.has_error()
                                          ? FromStreamError(response.error())
                                          : FromWire(response.response(), received, refs);
  const bool is_lost =
      refs != nullptr && step.shared->FallBackToBytes(RegionStatus(result), target_);
  return {std::move(result), is_lost};
}

absl::StatusOr<SessionInfo> StepMessages::ReadSession(
    const v1::StepStreamResponse& response) const {
  if (response.has_error()) return FromStreamError(response.error());
  if (!response.has_created_session()) {
    return absl::InternalError("the server's answer holds no session");
  }
  absl::StatusOr<SessionInfo> info = FromProto(v1::Session(response.created_session().session()));
  if (info.ok()) transport_->targets().Learn(info->handle.server_name, target_);
  return info;
}

}  // namespace attention::client::internal
