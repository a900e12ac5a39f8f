// attention.v1.ServerService.
#pragma once

#include "attention/v1/server_service.grpc.pb.h"
#include "server/rpc/service_context.h"

namespace attention::server {

// Messages as bytes, so that bytes that are no message get an error that says so.
using RawServerService = v1::ServerService::WithRawCallbackMethod_GetServerInfo<
    v1::ServerService::WithRawCallbackMethod_Explain<v1::ServerService::Service>>;

class ServerServiceImpl final : public RawServerService {
 public:
  // `services` must outlive the service.
  explicit ServerServiceImpl(const ServiceContext& services) : services_(services) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;

 private:
  const ServiceContext& services_;
};

}  // namespace attention::server
