// The part that Attend and AttendStream share: one AttendRequest, from decoding to its response.
#pragma once

#include <cstdint>

#include "attention/v1/attention_service.pb.h"
#include "proto/codec/outgoing_message.h"
#include "proto/codec/received_message.h"
#include "server/rpc/service_context.h"
#include "server/wire/attend_decoder.h"

namespace attention::server {

class AttendCall {
 public:
  // The references must outlive the call.
  AttendCall(const ServiceContext& services, const CallFrame& frame,
             const codec::ReceivedMessage& received)
      : services_(services),
        tensors_(received, services.buffers, services.regions, frame.tenant()) {}

  // Decodes `wire`, a message within the received one, into `request`, whose tensors live in this.
  // INVALID_ARGUMENT names the field, RESOURCE_EXHAUSTED when memory is out. The received buffers
  // are not needed any more.
  absl::Status Begin(const CallFrame& frame, const v1::AttendRequest& wire, bool allows_weights,
                     AttentionRequest* request);

  // The AttendResponse of a request that was computed. Once.
  codec::OutgoingMessage Complete(const AttentionResult& result);

  // Of the request, for the second pass of weights.
  const std::vector<AttentionTask>& tasks() const { return decoded_.tasks; }
  const ResultLedger::Charge& charge() const { return decoded_.charge; }

 private:
  const ServiceContext& services_;
  RequestTensors tensors_;
  DecodedAttend decoded_;
  absl::Duration wire_in_;
};

}  // namespace attention::server
