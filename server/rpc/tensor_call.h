// The part that all requests with tensors share, whatever their message: where its tensors lie, how
// the memory of its results is admitted, and its times.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "attention/v1/timing.pb.h"
#include "proto/codec/received_message.h"
#include "server/domain/attention_request.h"
#include "server/rpc/service_context.h"
#include "server/wire/request_tensors.h"
#include "server/wire/response_tensors.h"

namespace attention::server {

class TensorCall {
 public:
  // The references must outlive the call.
  TensorCall(const ServiceContext& services, const CallFrame& frame,
             const codec::ReceivedMessage& received)
      : services_(services),
        tensors_(received, services.buffers, services.regions, frame.tenant()) {}
  TensorCall(const TensorCall&) = delete;
  TensorCall& operator=(const TensorCall&) = delete;

 protected:
  ~TensorCall() = default;

  // Fills `request` by `decode`, which takes memory for results from the allocator. Then the time
  // of decoding ends and that of queueing begins. RESOURCE_EXHAUSTED when memory is out.
  absl::Status Decode(const CallFrame& frame, AttentionRequest* request,
                      absl::FunctionRef<absl::Status(ResponseAllocator& allocator)> decode);

  // Encodes the timing of the computed request and observes its wire times: encoding ends now.
  void EncodeTiming(const AttentionResult& result, v1::Timing* wire);

  const ServiceContext& services() const { return services_; }
  RequestTensors& tensors() { return tensors_; }

 private:
  const ServiceContext& services_;
  RequestTensors tensors_;
  absl::Duration wire_in_;
};

}  // namespace attention::server
