// The part that Attend and AttendStream share: one AttendRequest, from decoding to its response.
#pragma once

#include "attention/v1/attention_service.pb.h"
#include "proto/codec/outgoing_message.h"
#include "server/rpc/tensor_call.h"
#include "server/wire/attend_decoder.h"

namespace attention::server {

// A request of a stream, whose weights follow in blocks.
class AttendCall : public TensorCall {
 public:
  static constexpr bool kReadsReceivedBytes = false;

  using TensorCall::TensorCall;

  // Decodes `wire`, a message within the received one, into `request`, whose tensors live in this.
  // INVALID_ARGUMENT names the field, RESOURCE_EXHAUSTED when memory is out.
  absl::Status Begin(const CallFrame& frame, const v1::AttendRequest& wire,
                     AttentionRequest* request) {
    return Begin(frame, wire, WeightsForm::kInBlocks, request);
  }

  // The AttendResponse of a request that was computed. Once.
  absl::StatusOr<codec::OutgoingMessage> Complete(const AttentionResult& result);

  // The request's tasks and charge, for the second pass of weights.
  const std::vector<AttentionTask>& tasks() const { return decoded_.tasks; }
  const ResultLedger::Charge& charge() const { return decoded_.charge; }

 protected:
  absl::Status Begin(const CallFrame& frame, const v1::AttendRequest& wire, WeightsForm form,
                     AttentionRequest* request);

 private:
  DecodedAttend decoded_;
};

// A request of a unary call, whose answer holds the weights.
class UnaryAttendCall final : public AttendCall {
 public:
  using AttendCall::AttendCall;

  absl::Status Begin(const CallFrame& frame, const v1::AttendRequest& wire,
                     AttentionRequest* request) {
    return AttendCall::Begin(frame, wire, WeightsForm::kInAnswer, request);
  }
};

}  // namespace attention::server
