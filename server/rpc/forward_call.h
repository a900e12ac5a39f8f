// One ForwardRequest, from decoding to its response.
#pragma once

#include <memory>
#include <vector>

#include "attention/v1/layer_service.pb.h"
#include "proto/codec/outgoing_message.h"
#include "proto/codec/received_message.h"
#include "server/rpc/service_context.h"
#include "server/wire/forward_decoder.h"

namespace attention::server {

class ForwardCall {
 public:
  // The references must outlive the call.
  ForwardCall(const ServiceContext& services, const CallFrame& frame,
              const codec::ReceivedMessage& received)
      : services_(services),
        tensors_(received, services.buffers, services.regions, frame.tenant()) {}

  // Decodes `wire` into `request`, whose tensors live in this. The received buffers are not needed
  // any more. INVALID_ARGUMENT names the field; NOT_FOUND, FAILED_PRECONDITION for the layer or a
  // session; RESOURCE_EXHAUSTED when memory is out.
  absl::Status Begin(const CallFrame& frame, const v1::ForwardRequest& wire,
                     AttentionRequest* request);

  // The ForwardResponse of a request that was computed, or the error of the first sequence that
  // failed. Once.
  absl::StatusOr<codec::OutgoingMessage> Complete(const AttentionResult& result);

 private:
  absl::Status AcquireSessions(const CallFrame& frame, const v1::ForwardRequest& wire);
  void ZeroHiddenRows();

  const ServiceContext& services_;
  RequestTensors tensors_;
  std::shared_ptr<const Layer> layer_;
  std::vector<SessionLease> leases_;
  DecodedForward decoded_;
  absl::Duration wire_in_;
};

}  // namespace attention::server
