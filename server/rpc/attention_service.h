// attention.v1.AttentionService.
#pragma once

#include "attention/v1/attention_service.grpc.pb.h"
#include "server/rpc/pipelined_stream.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/taken_at_headers.h"
#include "server/rpc/unary_call.h"

namespace attention::server {

// Its methods carry tensors, so their messages are received and sent as bytes (proto/codec).
using RawAttentionService = v1::AttentionService::WithRawMethod_Attend<
    v1::AttentionService::WithRawMethod_AttendStream<TakenAtHeaders<v1::AttentionService>>>;

class AttentionServiceImpl final : public RawAttentionService {
 public:
  // The references must outlive the service.
  AttentionServiceImpl(const ServiceContext& services, StreamRegistry& registry);

  // Takes calls from now on; the server must have started.
  void Listen(grpc::ServerCompletionQueue& queue);

 private:
  void Attend(UnaryCall& call);

  const ServiceContext& services_;
  grpc::ServerCompletionQueue* queue_ = nullptr;
  const UnaryMethod attend_;
  const StreamMethod attend_stream_;
};

}  // namespace attention::server
