// attention.v1.SessionService.
#pragma once

#include "attention/v1/session_service.grpc.pb.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"

namespace attention::server {

class SessionServiceImpl final : public v1::SessionService::CallbackService {
 public:
  // The references must outlive the service.
  SessionServiceImpl(const ServiceContext& services, StreamRegistry& registry)
      : services_(services), registry_(registry) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context,
                                          const v1::CreateSessionRequest* request,
                                          v1::CreateSessionResponse* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::GetSessionResponse* response) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context,
                                         const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const v1::DeleteSessionRequest* request,
                                          v1::DeleteSessionResponse* response) override;
  grpc::ServerUnaryReactor* Step(grpc::CallbackServerContext* context,
                                 const v1::StepRequest* request,
                                 v1::StepResponse* response) override;
  grpc::ServerBidiReactor<v1::StepStreamRequest, v1::StepStreamResponse>* StepStream(
      grpc::CallbackServerContext* context) override;

 private:
  const ServiceContext& services_;
  StreamRegistry& registry_;
};

}  // namespace attention::server
