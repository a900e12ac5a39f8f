// attention.v1.ServerService.
#pragma once

#include "attention/v1/server_service.grpc.pb.h"
#include "server/rpc/service_context.h"
#include "server/rpc/taken_at_headers.h"
#include "server/rpc/unary_call.h"

namespace attention::server {

// Messages are received and sent as bytes (proto/codec).
using RawServerService = v1::ServerService::WithRawMethod_GetServerInfo<
    v1::ServerService::WithRawMethod_Explain<v1::ServerService::WithRawMethod_GetTenantLimits<
        v1::ServerService::WithRawMethod_SetTenantLimits<
            v1::ServerService::WithRawMethod_Drain<TakenAtHeaders<v1::ServerService>>>>>>;

class ServerServiceImpl final : public RawServerService {
 public:
  // `services` must outlive the service.
  explicit ServerServiceImpl(const ServiceContext& services);

  // Takes calls from now on; the server must have started.
  void Listen(grpc::ServerCompletionQueue& queue);

 private:
  void GetServerInfo(UnaryCall& call);
  void Explain(UnaryCall& call);
  void GetTenantLimits(UnaryCall& call);
  void SetTenantLimits(UnaryCall& call);
  void Drain(UnaryCall& call);

  const ServiceContext& services_;
  grpc::ServerCompletionQueue* queue_ = nullptr;
  const UnaryMethod get_server_info_;
  const UnaryMethod explain_;
  const UnaryMethod get_tenant_limits_;
  const UnaryMethod set_tenant_limits_;
  const UnaryMethod drain_;
};

}  // namespace attention::server
