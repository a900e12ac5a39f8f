#include "client/internal/shared_memory/shared_memory_request.h"

#include <optional>
#include <string>

#include "attention/client/errors.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/convert/error_details.h"

namespace attention::client::internal {
namespace {

// True if the server has certainly ended its work on the request: it has answered, or said why not.
// gRPC itself makes up the other codes, too, without knowing what the server does.
bool IsSettled(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return ReasonOf(status).has_value();
  }
}

bool IsRegionLost(const absl::Status& status) {
  return !status.ok() && ReasonOf(status) == kRegionNotFound;
}

}  // namespace

absl::StatusOr<codec::OutgoingMessage> SharedMemoryRequest::MessageFor(std::size_t target) {
  refs_ = is_sharing_ ? RefsAt(target) : nullptr;
  return encode_(refs_.get());
}

absl::StatusOr<grpc::ByteBuffer> SharedMemoryRequest::BytesFor(std::size_t target) {
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(codec::OutgoingMessage message, MessageFor(target));
  return channels_->transport().Serialize(std::move(message));
}

std::shared_ptr<const SharedTensorRefs> SharedMemoryRequest::RefsAt(std::size_t target) {
  std::vector<NamedSlot> inputs;
  inputs.reserve(inputs_.slots.size());
  for (const std::shared_ptr<SharedSlot>& slot : inputs_.slots) {
    // Most lie in the region of the one before.
    if (!inputs.empty() && inputs.back().slot->region() == slot->region()) {
      inputs.push_back({slot, inputs.back().region_id});
      continue;
    }
    std::optional<std::string> id = SharedMemoryChannels::RegionId(target, *slot->region());
    if (!id.has_value()) return nullptr;
    inputs.push_back({slot, *std::move(id)});
  }
  channels_->CountRequest();
  return std::make_shared<const SharedTensorRefs>(std::move(inputs), OutputAt(target),
                                                  inputs_.output_bytes);
}

NamedSlot SharedMemoryRequest::OutputAt(std::size_t target) {
  const std::size_t bytes = SharedTensorRefs::SlotBytes(inputs_.output_bytes);
  if (bytes == 0) return {};
  if (output_ == nullptr || output_->region()->target() != target) {
    output_ = channels_->Allocate(target, bytes);
  }
  if (output_ == nullptr) return {};
  std::optional<std::string> id = SharedMemoryChannels::RegionId(target, *output_->region());
  if (!id.has_value()) return {};
  return {output_, *std::move(id)};
}

void SharedMemoryRequest::OnOutcome(const absl::Status& outcome) {
  if (refs_ == nullptr || IsSettled(outcome)) return;
  for (const NamedSlot& input : refs_->inputs()) input.slot->Abandon();
  if (refs_->output().slot != nullptr) refs_->output().slot->Abandon();
  output_ = nullptr;
}

bool SharedMemoryRequest::FallBackToBytes(const absl::Status& outcome, std::size_t target) {
  if (refs_ == nullptr || !IsRegionLost(outcome)) return false;
  for (const NamedSlot& input : refs_->inputs()) {
    channels_->OnRegionLost(target, input.region_id);
  }
  is_sharing_ = false;
  refs_ = nullptr;
  output_ = nullptr;
  return true;
}

const absl::Status& RegionStatus(const absl::StatusOr<AttendResult>& result) {
  return result.status();
}

const absl::Status& RegionStatus(const absl::StatusOr<StepResult>& result) {
  if (!result.ok()) return result.status();
  for (const SessionStepResult& step : result->results) {
    if (IsRegionLost(step.status)) return step.status;
  }
  return result.status();
}

}  // namespace attention::client::internal
