// One ForwardRequest, from decoding to its response.
#pragma once

#include <memory>
#include <vector>

#include "attention/v1/layer_service.pb.h"
#include "proto/codec/outgoing_message.h"
#include "server/rpc/tensor_call.h"
#include "server/wire/forward_decoder.h"

namespace attention::server {

class ForwardCall final : public TensorCall {
 public:
  static constexpr bool kReadsReceivedBytes = false;

  using TensorCall::TensorCall;

  // Decodes `wire` into `request`, whose tensors live in this. INVALID_ARGUMENT names the field;
  // NOT_FOUND, FAILED_PRECONDITION for the layer or a session; RESOURCE_EXHAUSTED when memory is
  // out.
  absl::Status Begin(const CallFrame& frame, const v1::ForwardRequest& wire,
                     AttentionRequest* request);

  // The ForwardResponse of a request that was computed, or the error of the first sequence that
  // failed. Once.
  absl::StatusOr<codec::OutgoingMessage> Complete(const AttentionResult& result);

 private:
  // The sessions' caches; their leases are kept.
  absl::StatusOr<std::vector<StepTarget>> AcquireSessions(const CallFrame& frame,
                                                          const v1::ForwardRequest& wire);
  void ZeroHiddenRows();

  std::shared_ptr<const Layer> layer_;
  std::vector<SessionLease> leases_;
  DecodedForward decoded_;
};

}  // namespace attention::server
