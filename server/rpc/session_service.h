// attention.v1.SessionService.
#pragma once

#include "attention/v1/session_service.grpc.pb.h"
#include "server/rpc/pipelined_stream.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/unary_call.h"

namespace attention::server {

// All messages are received and sent as bytes (proto/codec): Step's and StepStream's because they
// carry tensors, the others' so that bytes that are no message get an error that says so.
template <typename Service>
using RawControlMethods = v1::SessionService::WithRawCallbackMethod_CreateSession<
    v1::SessionService::WithRawCallbackMethod_GetSession<
        v1::SessionService::WithRawCallbackMethod_ListSessions<
            v1::SessionService::WithRawCallbackMethod_DeleteSession<Service>>>>;
using RawSessionService = RawControlMethods<v1::SessionService::WithRawMethod_Step<
    v1::SessionService::WithRawMethod_StepStream<v1::SessionService::Service>>>;

class SessionServiceImpl final : public RawSessionService {
 public:
  // The references must outlive the service.
  SessionServiceImpl(const ServiceContext& services, StreamRegistry& registry);

  // Takes calls that carry tensors from now on; the server must have started.
  void Listen(grpc::ServerCompletionQueue& queue);

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;

 private:
  void Step(UnaryCall& call);

  const ServiceContext& services_;
  grpc::ServerCompletionQueue* queue_ = nullptr;
  const UnaryMethod step_;
  const StreamMethod step_stream_;
};

}  // namespace attention::server
