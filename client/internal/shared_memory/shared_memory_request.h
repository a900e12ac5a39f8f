// A request whose tensors lie in shared memory: each attempt sends the references that its target
// knows, or the tensors themselves to a target that does not know them.
//
// The tensors are one lease: they stay as they are until the call is over and, when an attempt
// ended without the server's word, for good (SharedRegion). An attempt that follows such a one
// gets another slot for the output, as the earlier may still be writing.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/attention.h"
#include "attention/client/session_types.h"
#include "client/internal/call/outgoing_request.h"
#include "client/internal/shared_memory/move_tensors.h"
#include "client/internal/shared_memory/shared_memory_channels.h"
#include "client/internal/shared_memory/shared_tensor_refs.h"
#include "proto/codec/outgoing_message.h"

namespace attention::client::internal {

class SharedMemoryRequest final : public OutgoingRequest {
 public:
  // Encodes the request with these references, or without any.
  using Encode = std::function<absl::StatusOr<codec::OutgoingMessage>(const TensorRefs*)>;

  // `encode` reads tensors that lie in the slots.
  SharedMemoryRequest(std::shared_ptr<SharedMemoryChannels> channels, SharedInputs inputs,
                      Encode encode)
      : channels_(std::move(channels)), inputs_(std::move(inputs)), encode_(std::move(encode)) {}

  // The message of an attempt at the target, and its bytes.
  absl::StatusOr<codec::OutgoingMessage> MessageFor(std::size_t target);
  absl::StatusOr<grpc::ByteBuffer> BytesFor(std::size_t target) override;
  void OnOutcome(const absl::Status& outcome) override;

  // The references of the last attempt; null when it sent the tensors.
  const TensorRefs* refs() const { return refs_.get(); }

  // True if the last attempt failed because its target does not know a region. The request is then
  // to be sent again, and all further attempts send the tensors.
  bool FallBackToBytes(const absl::Status& outcome, std::size_t target);

 private:
  std::shared_ptr<const SharedTensorRefs> RefsAt(std::size_t target);
  NamedSlot OutputAt(std::size_t target);

  const std::shared_ptr<SharedMemoryChannels> channels_;
  const SharedInputs inputs_;
  const Encode encode_;
  bool is_sharing_ = true;
  std::shared_ptr<SharedSlot> output_;
  std::shared_ptr<const SharedTensorRefs> refs_;
};

// The request to be sent to the target by shared memory; null when it is not to be: there are no
// channels, or MoveToSharedMemory says so. `encode` is called with the request and its references.
template <typename Request, typename Encode>
std::shared_ptr<SharedMemoryRequest> ShareRequest(
    const std::shared_ptr<SharedMemoryChannels>& channels, std::size_t target,
    const Request& request, Encode encode) {
  if (channels == nullptr) return nullptr;
  SharedInputs inputs;
  const std::shared_ptr<const Request> moved =
      MoveToSharedMemory(*channels, target, request, &inputs);
  if (moved == nullptr) return nullptr;
  return std::make_shared<SharedMemoryRequest>(
      channels, std::move(inputs),
      [moved, encode](const TensorRefs* refs) { return encode(*moved, refs); });
}

// The first status that says that a region is not known: the call's, or a step's.
const absl::Status& RegionStatus(const absl::StatusOr<AttendResult>& result);
const absl::Status& RegionStatus(const absl::StatusOr<StepResult>& result);

}  // namespace attention::client::internal
