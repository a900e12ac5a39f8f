// attention.v1.SessionService.
#pragma once

#include "attention/v1/session_service.grpc.pb.h"
#include "server/rpc/pipelined_stream.h"
#include "server/rpc/service_context.h"
#include "server/rpc/stream_registry.h"
#include "server/rpc/taken_at_headers.h"
#include "server/rpc/unary_call.h"

namespace attention::server {

// Messages are received and sent as bytes (proto/codec).
template <typename Service>
using RawControlMethods = v1::SessionService::WithRawMethod_CreateSession<
    v1::SessionService::WithRawMethod_GetSession<v1::SessionService::WithRawMethod_ListSessions<
        v1::SessionService::WithRawMethod_DeleteSession<Service>>>>;
template <typename Service>
using RawChangeMethods =
    v1::SessionService::WithRawMethod_ForkSession<v1::SessionService::WithRawMethod_TruncateSession<
        v1::SessionService::WithRawMethod_ReorderSessions<
            v1::SessionService::WithRawMethod_AttachSession<
                v1::SessionService::WithRawMethod_KeepTokens<
                    v1::SessionService::WithRawMethod_GetKeysValues<Service>>>>>>;
using RawSessionService = RawControlMethods<RawChangeMethods<v1::SessionService::WithRawMethod_Step<
    v1::SessionService::WithRawMethod_StepStream<v1::SessionService::WithRawMethod_ExportSession<
        v1::SessionService::WithRawMethod_ImportSession<TakenAtHeaders<v1::SessionService>>>>>>>;

class SessionServiceImpl final : public RawSessionService {
 public:
  // The references must outlive the service.
  SessionServiceImpl(const ServiceContext& services, StreamRegistry& registry);

  // Takes calls from now on; the server must have started.
  void Listen(grpc::ServerCompletionQueue& queue);

 private:
  void CreateSession(UnaryCall& call);
  void GetSession(UnaryCall& call);
  void ListSessions(UnaryCall& call);
  void DeleteSession(UnaryCall& call);
  void ForkSession(UnaryCall& call);
  void TruncateSession(UnaryCall& call);
  void ReorderSessions(UnaryCall& call);
  void AttachSession(UnaryCall& call);
  void KeepTokens(UnaryCall& call);
  void GetKeysValues(UnaryCall& call);
  void Step(UnaryCall& call);

  const ServiceContext& services_;
  grpc::ServerCompletionQueue* queue_ = nullptr;
  const UnaryMethod create_session_;
  const UnaryMethod get_session_;
  const UnaryMethod list_sessions_;
  const UnaryMethod delete_session_;
  const UnaryMethod fork_session_;
  const UnaryMethod truncate_session_;
  const UnaryMethod reorder_sessions_;
  const UnaryMethod attach_session_;
  const UnaryMethod keep_tokens_;
  const UnaryMethod get_keys_values_;
  const UnaryMethod step_;
  const StreamMethod step_stream_;
  const StreamMethod export_session_;
  const StreamMethod import_session_;
};

}  // namespace attention::server
