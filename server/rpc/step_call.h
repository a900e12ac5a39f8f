// The part that Step and StepStream share: one StepRequest, from decoding to its response.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/v1/session_service.pb.h"
#include "proto/codec/outgoing_message.h"
#include "proto/codec/received_message.h"
#include "server/rpc/service_context.h"
#include "server/wire/request_tensors.h"
#include "server/wire/response_tensors.h"

namespace attention::server {

class StepCall {
 public:
  // The references must outlive the call.
  StepCall(const ServiceContext& services, const CallFrame& frame,
           const codec::ReceivedMessage& received)
      : services_(services),
        tensors_(received, services.buffers, services.regions, frame.tenant()) {}

  // Decodes the steps of `wire`, a message within the received one, into `request`, whose tensors
  // live in this or, rows to append, in the received message. Steps that cannot run keep their
  // error for the response and take no part. INVALID_ARGUMENT when the request as a whole is wrong,
  // RESOURCE_EXHAUSTED when memory is out.
  absl::Status Begin(const CallFrame& frame, const v1::StepRequest& wire,
                     AttentionRequest* request);

  // The StepResponse of a request that was computed. Once.
  codec::OutgoingMessage Complete(AttentionResult& result);

 private:
  // One step of the request and what becomes of it.
  struct Entry {
    absl::Status status;  // why it took no part
    SessionLease lease;
    ResponseTensor output;
    ResponseTensor lse;
    std::int64_t num_column_sum_heads = 0;  // 0: column sums are not wanted
  };

  absl::Status BeginSteps(const CallFrame& frame, const v1::StepRequest& wire,
                          AttentionRequest* request);
  absl::Status BeginStep(const CallFrame& frame, const v1::SessionStep& wire,
                         ResponseBudget& budget, Entry* entry, AttentionRequest* request);
  codec::OutgoingMessage CompleteStep(std::size_t index, StepOutcome& outcome);

  const ServiceContext& services_;
  RequestTensors tensors_;
  std::vector<Entry> entries_;
  WorkEstimate work_;
  std::int64_t num_tokens_ = 0;  // that the steps so far append
  ResultLedger::Charge charge_;  // for column sums, which the engine allocates
  absl::Duration wire_in_;
};

// A SessionHandle from the wire.
SessionHandle DecodeHandle(const v1::SessionHandle& wire);

}  // namespace attention::server
