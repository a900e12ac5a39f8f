// attention.v1.AttentionService.
#pragma once

#include "attention/v1/attention_service.grpc.pb.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"

namespace attention::server {

class AttentionServiceImpl final : public v1::AttentionService::CallbackService {
 public:
  // The references must outlive the service.
  AttentionServiceImpl(const ServiceContext& services, StreamRegistry& registry)
      : services_(services), registry_(registry) {}

  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const v1::AttendRequest* request,
                                   v1::AttendResponse* response) override;

  grpc::ServerBidiReactor<v1::AttendStreamRequest, v1::AttendStreamResponse>* AttendStream(
      grpc::CallbackServerContext* context) override;

 private:
  const ServiceContext& services_;
  StreamRegistry& registry_;
};

}  // namespace attention::server
