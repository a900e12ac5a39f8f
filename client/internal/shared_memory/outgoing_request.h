// A request as its attempts send it: bytes that are the same for every attempt; or a request whose
// tensors lie in shared memory, of which each attempt sends the references that its target knows,
// or the tensors themselves to a target that does not know them.
//
// Its tensors are one lease: they stay as they are until the call is over and, when an attempt
// ended without the server's word, for good (SharedRegion). An attempt that follows such a one
// gets another slot for the output, as the earlier may still be writing.
//
// Thread-safety: none; attempts follow each other.
#ifndef ATTENTION_CLIENT_INTERNAL_SHARED_MEMORY_OUTGOING_REQUEST_H_
#define ATTENTION_CLIENT_INTERNAL_SHARED_MEMORY_OUTGOING_REQUEST_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/attention.h"
#include "attention/client/session_types.h"
#include "client/internal/shared_memory/shared_memory_channels.h"
#include "client/internal/shared_memory/shared_tensor_refs.h"
#include "proto/codec/outgoing_message.h"

namespace attention::client::internal {

// A request moved to shared memory.
struct SharedInputs {
  std::vector<std::shared_ptr<SharedSlot>> slots;
  // Of each output, 0 where it is not known.
  std::vector<size_t> output_bytes;
};

class OutgoingRequest {
 public:
  // Encodes the request with these references, or without any.
  using Encode = std::function<absl::StatusOr<codec::OutgoingMessage>(const SharedTensorRefs*)>;

  explicit OutgoingRequest(grpc::ByteBuffer bytes) : bytes_(std::move(bytes)) {}
  // `encode` reads tensors that lie in the slots.
  OutgoingRequest(SharedMemoryChannels& channels, SharedInputs inputs, Encode encode)
      : channels_(&channels), inputs_(std::move(inputs)), encode_(std::move(encode)) {}

  // True if there is nothing but bytes.
  bool is_bytes() const { return channels_ == nullptr; }
  const grpc::ByteBuffer& bytes() const { return bytes_; }

  // The message of an attempt at the target. Not of bytes.
  absl::StatusOr<codec::OutgoingMessage> MessageFor(size_t target);
  // How that attempt ended: before another begins, and before the answer is read.
  void OnOutcome(const absl::Status& outcome);

  // The references of the last attempt; null when it sent the tensors.
  const std::shared_ptr<const SharedTensorRefs>& refs() const { return refs_; }

  // True if the last attempt failed because its target does not know a region. The request is then
  // to be sent again, with its tensors in the message.
  bool TakeBackIfLost(const absl::Status& outcome, size_t target);

 private:
  std::shared_ptr<const SharedTensorRefs> RefsAt(size_t target);
  NamedSlot OutputAt(size_t target);

  grpc::ByteBuffer bytes_;
  SharedMemoryChannels* channels_ = nullptr;
  SharedInputs inputs_;
  Encode encode_;
  bool is_sharing_ = true;
  std::shared_ptr<SharedSlot> output_;
  std::shared_ptr<const SharedTensorRefs> refs_;
};

// The request with its tensors in memory that is shared with the target's server, copied unless
// they lie there, when it is large enough for that to pay, or some of them lie there. Null when it
// is not, there is no room, or a tensor is none: the server, or the encoder, then says what is
// wrong.
std::shared_ptr<const AttendRequest> MoveToSharedMemory(SharedMemoryChannels& channels,
                                                        size_t target, const AttendRequest& request,
                                                        SharedInputs* inputs);
std::shared_ptr<const StepRequest> MoveToSharedMemory(SharedMemoryChannels& channels, size_t target,
                                                      const StepRequest& request,
                                                      SharedInputs* inputs);

// The request to be sent to the target by shared memory; null when it is not to be
// (MoveToSharedMemory). `encode` is called with the request and its references.
template <typename Request, typename Encode>
std::shared_ptr<OutgoingRequest> ShareRequest(SharedMemoryChannels* channels, size_t target,
                                              const Request& request, Encode encode) {
  if (channels == nullptr) return nullptr;
  SharedInputs inputs;
  const std::shared_ptr<const Request> moved =
      MoveToSharedMemory(*channels, target, request, &inputs);
  if (moved == nullptr) return nullptr;
  return std::make_shared<OutgoingRequest>(
      *channels, std::move(inputs),
      [moved, encode](const SharedTensorRefs* refs) { return encode(*moved, refs); });
}

// The first status that says that a region is not known: the call's, or a step's.
const absl::Status& RegionStatus(const absl::StatusOr<AttendResult>& result);
const absl::Status& RegionStatus(const absl::StatusOr<StepResult>& result);

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_SHARED_MEMORY_OUTGOING_REQUEST_H_
