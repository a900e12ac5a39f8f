// The part that Step and StepStream share: one StepRequest, from decoding to its response.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/v1/session_service.pb.h"
#include "proto/codec/outgoing_message.h"
#include "server/rpc/tensor_call.h"

namespace attention::server {

class StepCall final : public TensorCall {
 public:
  // Rows to append.
  static constexpr bool kReadsReceivedBytes = true;

  using TensorCall::TensorCall;

  // Decodes the steps of `wire`, a message within the received one, into `request`, whose tensors
  // live in this or, rows to append, in the received message. Steps that cannot run keep their
  // error for the response and take no part. INVALID_ARGUMENT when the request as a whole is wrong,
  // RESOURCE_EXHAUSTED when memory is out.
  absl::Status Begin(const CallFrame& frame, const v1::StepRequest& wire,
                     AttentionRequest* request);

  // The StepResponse of a request that was computed. Once.
  absl::StatusOr<codec::OutgoingMessage> Complete(AttentionResult& result);

 private:
  // One step of the request and what becomes of it.
  struct Entry {
    absl::Status status;  // why it took no part
    SessionLease lease;
    ResponseTensor output;
    ResponseTensor lse;
    std::int64_t num_column_sum_heads = 0;  // 0: column sums are not wanted
    std::int64_t num_weight_heads = 0;      // 0: weights are not wanted
    std::int64_t q_len = 0;
  };

  absl::Status BeginSteps(const CallFrame& frame, const v1::StepRequest& wire,
                          ResponseAllocator& allocator, AttentionRequest* request);
  absl::Status BeginStep(const CallFrame& frame, const v1::SessionStep& wire,
                         ResponseBudget& budget, Entry* entry, AttentionRequest* request);
  codec::OutgoingMessage CompleteStep(std::size_t index, StepOutcome& outcome);

  std::vector<Entry> entries_;
  WorkEstimate work_;
  std::int64_t num_tokens_ = 0;  // that the steps so far append
  ResultLedger::Charge charge_;  // for column sums and weights, which the engine allocates
};

}  // namespace attention::server
