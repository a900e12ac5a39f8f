// attention.v1.ServerService.
#pragma once

#include "attention/v1/server_service.grpc.pb.h"
#include "server/rpc/service_context.h"

namespace attention::server {

class ServerServiceImpl final : public v1::ServerService::CallbackService {
 public:
  // `services` must outlive the service.
  explicit ServerServiceImpl(const ServiceContext& services) : services_(services) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext* context,
                                    const v1::ExplainRequest* request,
                                    v1::ExplainResponse* response) override;

 private:
  const ServiceContext& services_;
};

}  // namespace attention::server
