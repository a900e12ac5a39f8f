#include "server/rpc/session_service.h"

#include <cstdint>
#include <memory>
#include <utility>

#include "server/base/status_macros.h"
#include "server/rpc/keys_values_call.h"
#include "server/rpc/list_page.h"
#include "server/rpc/session_archives.h"
#include "server/rpc/session_changes.h"
#include "server/rpc/session_messages.h"
#include "server/rpc/status_mapping.h"
#include "server/rpc/step_call.h"
#include "server/rpc/tensor_exchange.h"

namespace attention::server {
namespace {

// The session that is asked for, made or found by its name.
absl::StatusOr<SessionLease> CreateOrFind(const ServiceContext& services, const CallFrame& frame,
                                          const v1::CreateSessionRequest& request) {
  ATTENTION_RETURN_IF_ERROR(services.scheduler.CheckAccepting());
  ATTENTION_ASSIGN_OR_RETURN(SessionTable::NewSession decoded,
                             DecodeNewSession(request, frame.tenant()));
  return services.sessions.Create(std::move(decoded));
}

using StepExchange = TensorExchange<v1::StepStreamRequest, StepCall>;

class StepStreamCall final : public TensorStream<StepExchange> {
 public:
  using TensorStream::TensorStream;
  // Nothing of the stream is in flight any more.
  ~StepStreamCall() override {
    if (binding_ != 0) services().sessions.EndBound(binding_);
  }

 private:
  bool AnswerAtOnce(const Exchange& exchange) override {
    if (!exchange.wire.has_create_session()) return false;
    CreateBound(exchange);
    return true;
  }

  void CreateBound(const Exchange& exchange) {
    SendOrError(exchange, [&]() -> absl::Status {
      ATTENTION_ASSIGN_OR_RETURN(const SessionLease session,
                                 CreateOrFind(services(), frame(), exchange.wire.create_session()));
      if (binding_ == 0) binding_ = services().sessions.NewBinding();
      session->binding.store(binding_);
      v1::StepStreamResponse response;
      response.set_request_id(exchange.wire.request_id());
      EncodeSession(services().sessions, session,
                    response.mutable_created_session()->mutable_session());
      Send({codec::OutgoingMessage(response).Serialize(), /*is_last=*/true, exchange.bytes});
      return absl::OkStatus();
    });
  }

  absl::Status Answer(const ExchangePtr& exchange, AttentionResult& result) override {
    v1::StepStreamResponse small_fields;
    small_fields.set_request_id(exchange->wire.request_id());
    codec::OutgoingMessage response(small_fields);
    ATTENTION_ASSIGN_OR_RETURN(codec::OutgoingMessage steps, exchange->call.Complete(result));
    response.Add(v1::StepStreamResponse::kResponseFieldNumber, std::move(steps));
    Send({std::move(response).Serialize(), /*is_last=*/true, exchange->bytes});
    return absl::OkStatus();
  }

  grpc::ByteBuffer ErrorAnswer(const Exchange& exchange, const absl::Status& status) override {
    v1::StepStreamResponse response;
    response.set_request_id(exchange.wire.request_id());
    *response.mutable_error() = ToStreamError(status);
    return codec::OutgoingMessage(response).Serialize();
  }

  std::uint64_t binding_ = 0;  // of the sessions that end with the stream; 0: there are none
};

}  // namespace

SessionServiceImpl::SessionServiceImpl(const ServiceContext& services, StreamRegistry& registry)
    : services_(services),
      create_session_(ATTENTION_UNARY_METHOD(SessionService, CreateSession)),
      get_session_(ATTENTION_UNARY_METHOD(SessionService, GetSession)),
      list_sessions_(ATTENTION_UNARY_METHOD(SessionService, ListSessions)),
      delete_session_(ATTENTION_UNARY_METHOD(SessionService, DeleteSession)),
      fork_session_(ATTENTION_UNARY_METHOD(SessionService, ForkSession)),
      truncate_session_(ATTENTION_UNARY_METHOD(SessionService, TruncateSession)),
      reorder_sessions_(ATTENTION_UNARY_METHOD(SessionService, ReorderSessions)),
      attach_session_(ATTENTION_UNARY_METHOD(SessionService, AttachSession)),
      keep_tokens_(ATTENTION_UNARY_METHOD(SessionService, KeepTokens)),
      get_keys_values_(ATTENTION_UNARY_METHOD(SessionService, GetKeysValues)),
      step_(ATTENTION_UNARY_METHOD(SessionService, Step)),
      step_stream_{
          services, "SessionService/StepStream", registry,
          [this](auto* context, auto* channel, void* tag) {
            RequestStepStream(context, channel, queue_, queue_, tag);
          },
          [](const StreamMethod& method) { return std::make_shared<StepStreamCall>(method); }},
      export_session_{services, "SessionService/ExportSession", registry,
                      [this](auto* context, auto* channel, void* tag) {
                        RequestExportSession(context, channel, queue_, queue_, tag);
                      },
                      MakeExportStream},
      import_session_{services, "SessionService/ImportSession", registry,
                      [this](auto* context, auto* channel, void* tag) {
                        RequestImportSession(context, channel, queue_, queue_, tag);
                      },
                      MakeImportStream} {}

void SessionServiceImpl::Listen(grpc::ServerCompletionQueue& queue) {
  queue_ = &queue;
  for (const UnaryMethod* method :
       {&create_session_, &get_session_, &list_sessions_, &delete_session_, &fork_session_,
        &truncate_session_, &reorder_sessions_, &attach_session_, &keep_tokens_, &get_keys_values_,
        &step_}) {
    UnaryCall::Listen(*method);
  }
  for (const StreamMethod* method : {&step_stream_, &export_session_, &import_session_}) {
    PipelinedStream::Listen(*method);
  }
}

void SessionServiceImpl::CreateSession(UnaryCall& call) {
  AnswerNow<v1::CreateSessionRequest, v1::CreateSessionResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        ATTENTION_ASSIGN_OR_RETURN(const SessionLease session,
                                   CreateOrFind(services_, frame, request));
        EncodeSession(services_.sessions, session, response->mutable_session());
        return absl::OkStatus();
      });
}

void SessionServiceImpl::GetSession(UnaryCall& call) {
  AnswerNow<v1::GetSessionRequest, v1::GetSessionResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        ATTENTION_ASSIGN_OR_RETURN(const std::string tenant, frame.TenantNamed(request.tenant()));
        ATTENTION_ASSIGN_OR_RETURN(
            const SessionLease session,
            services_.sessions.Acquire(DecodeHandle(request.handle()), tenant));
        EncodeSession(services_.sessions, session, response->mutable_session());
        return absl::OkStatus();
      });
}

void SessionServiceImpl::ListSessions(UnaryCall& call) {
  AnswerNow<v1::ListSessionsRequest, v1::ListSessionsResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        ATTENTION_ASSIGN_OR_RETURN(const std::string tenant, frame.TenantNamed(request.tenant()));
        ATTENTION_ASSIGN_OR_RETURN(const SessionFilter filter, DecodeFilter(request));
        const auto list = [&](const std::string& after, std::size_t count) {
          return services_.sessions.List(tenant, after, count, filter);
        };
        const auto add = [&](const Session& session) {
          EncodeSession(services_.sessions, session, /*own_leases=*/0, response->add_sessions());
          return session.session_id;
        };
        return FillPage(request, list, add, response);
      });
}

void SessionServiceImpl::DeleteSession(UnaryCall& call) {
  AnswerNow<v1::DeleteSessionRequest, v1::DeleteSessionResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto*) {
        ATTENTION_ASSIGN_OR_RETURN(const std::string tenant, frame.TenantNamed(request.tenant()));
        return services_.sessions.Delete(DecodeHandle(request.handle()), tenant);
      });
}

void SessionServiceImpl::ForkSession(UnaryCall& call) { ServeFork(call, services_); }

void SessionServiceImpl::TruncateSession(UnaryCall& call) { ServeTruncate(call, services_); }

void SessionServiceImpl::AttachSession(UnaryCall& call) { ServeAttach(call, services_); }

void SessionServiceImpl::ReorderSessions(UnaryCall& call) { ServeReorder(call, services_); }

void SessionServiceImpl::KeepTokens(UnaryCall& call) { ServeKeep(call, services_); }

void SessionServiceImpl::GetKeysValues(UnaryCall& call) {
  ServeTensorCall<v1::GetKeysValuesRequest, KeysValuesCall>(call, services_);
}

void SessionServiceImpl::Step(UnaryCall& call) {
  ServeTensorCall<v1::StepRequest, StepCall>(call, services_);
}

}  // namespace attention::server
