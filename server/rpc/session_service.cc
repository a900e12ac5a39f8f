#include "server/rpc/session_service.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/rpc/pipelined_stream.h"
#include "server/rpc/step_call.h"
#include "server/rpc/tensor_decoder.h"
#include "server/rpc/timing_encoder.h"
#include "server/rpc/unary_call.h"

namespace attention::server {
namespace {

constexpr int kDefaultListPageSize = 100;
constexpr int kMaxListPageSize = 1000;

absl::StatusOr<SessionTable::NewSession> DecodeNewSession(const v1::CreateSessionRequest& wire,
                                                          const std::string& tenant) {
  if (!wire.has_geometry()) {
    return absl::InvalidArgumentError("geometry is missing, expected the shape of the cache");
  }
  const v1::SessionGeometry& geometry = wire.geometry();
  SessionTable::NewSession session;
  session.tenant = tenant;
  session.num_layers = geometry.num_layers();
  session.geometry.num_kv_heads = geometry.num_kv_heads();
  session.geometry.head_dim_qk = geometry.head_dim_qk();
  session.geometry.head_dim_v = geometry.head_dim_v();
  ATTENTION_ASSIGN_OR_RETURN(session.geometry.dtype,
                             DecodeKvDType("geometry.kv_dtype", geometry.kv_dtype()));
  session.expected_tokens = wire.expected_tokens();
  if (wire.has_ttl()) {
    session.ttl = absl::Seconds(wire.ttl().seconds()) + absl::Nanoseconds(wire.ttl().nanos());
    if (session.ttl == absl::ZeroDuration()) {
      return absl::InvalidArgumentError("ttl is 0s, expected more than 0, or absent");
    }
  }
  return session;
}

void EncodeTime(absl::Time time, google::protobuf::Timestamp* wire) {
  const timespec value = absl::ToTimespec(time);
  wire->set_seconds(value.tv_sec);
  wire->set_nanos(static_cast<int>(value.tv_nsec));
}

void EncodeSession(const SessionTable& table, const Session& session, v1::Session* wire) {
  wire->mutable_handle()->set_worker(table.worker());
  wire->mutable_handle()->set_worker_epoch(table.worker_epoch());
  wire->mutable_handle()->set_session_id(session.session_id);
  const KvCache& cache = *session.cache;
  v1::SessionGeometry* geometry = wire->mutable_geometry();
  geometry->set_num_layers(cache.num_layers());
  geometry->set_num_kv_heads(cache.geometry().num_kv_heads);
  geometry->set_head_dim_qk(cache.geometry().head_dim_qk);
  geometry->set_head_dim_v(cache.geometry().head_dim_v);
  geometry->set_kv_dtype(EncodeDType(cache.geometry().dtype));
  for (int layer = 0; layer < cache.num_layers(); ++layer) {
    wire->add_layer_lengths(cache.length(layer));
  }
  wire->set_committed_length(cache.committed_length());
  wire->set_kv_bytes(cache.kv_bytes());
  EncodeDuration(session.ttl, wire->mutable_ttl());
  EncodeTime(session.create_time, wire->mutable_create_time());
  EncodeTime(session.expire_time(), wire->mutable_expire_time());
}

using StepStreamBase = PipelinedStream<v1::StepStreamRequest, v1::StepStreamResponse>;

class StepStreamReactor final : public StepStreamBase {
 public:
  using StepStreamBase::StepStreamBase;

 private:
  struct Exchange {
    std::unique_ptr<v1::StepStreamRequest> request;
    std::unique_ptr<v1::StepStreamResponse> response = std::make_unique<v1::StepStreamResponse>();
    StepCall call;
  };

  void OnRequest(std::unique_ptr<v1::StepStreamRequest> wire) override {
    auto exchange = std::make_shared<Exchange>();
    exchange->request = std::move(wire);
    exchange->response->set_request_id(exchange->request->request_id());
    std::unique_ptr<AttentionRequest> request = frame().MakeRequest();
    request->completion = [self = Self(), exchange](std::unique_ptr<AttentionRequest>,
                                                    AttentionResult result) {
      exchange->call.Complete(self->services(), result);
      self->Answer(*exchange, result.status);
    };
    absl::Status status =
        exchange->call.Begin(services(), frame(), exchange->request->request(),
                             exchange->response->mutable_response(), request.get());
    if (status.ok()) status = services().scheduler.Submit(request);
    if (!status.ok()) Answer(*exchange, status);
  }

  void Answer(Exchange& exchange, const absl::Status& status) {
    if (!status.ok()) *exchange.response->mutable_error() = ToStreamError(status);
    exchange.request.reset();
    Send(std::move(exchange.response), /*is_last=*/true);
  }

  std::shared_ptr<StepStreamReactor> Self() {
    return std::static_pointer_cast<StepStreamReactor>(shared_from_this());
  }
};

// A unary Step: the reactor that also holds the call's leases.
class StepReactor final : public UnaryCall {
 public:
  using UnaryCall::UnaryCall;
  StepCall step;
};

}  // namespace

grpc::ServerUnaryReactor* SessionServiceImpl::CreateSession(grpc::CallbackServerContext* context,
                                                            const v1::CreateSessionRequest* request,
                                                            v1::CreateSessionResponse* response) {
  return AnswerNow(services_, "SessionService/CreateSession", *context,
                   [&](const CallFrame& frame) {
                     if (absl::Status status = services_.scheduler.CheckAccepting(); !status.ok())
                       return status;
                     auto decoded = DecodeNewSession(*request, frame.tenant());
                     if (!decoded.ok()) return std::move(decoded).status();
                     auto session = services_.sessions.Create(*std::move(decoded));
                     if (!session.ok()) return std::move(session).status();
                     EncodeSession(services_.sessions, **session, response->mutable_session());
                     return absl::OkStatus();
                   });
}

grpc::ServerUnaryReactor* SessionServiceImpl::GetSession(grpc::CallbackServerContext* context,
                                                         const v1::GetSessionRequest* request,
                                                         v1::GetSessionResponse* response) {
  return AnswerNow(services_, "SessionService/GetSession", *context, [&](const CallFrame& frame) {
    auto session = services_.sessions.Acquire(DecodeHandle(request->handle()), frame.tenant());
    if (!session.ok()) return std::move(session).status();
    EncodeSession(services_.sessions, **session, response->mutable_session());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* SessionServiceImpl::ListSessions(grpc::CallbackServerContext* context,
                                                           const v1::ListSessionsRequest* request,
                                                           v1::ListSessionsResponse* response) {
  return AnswerNow(services_, "SessionService/ListSessions", *context, [&](const CallFrame& frame) {
    const int page_size = request->page_size() == 0 ? kDefaultListPageSize : request->page_size();
    if (page_size < 0 || page_size > kMaxListPageSize) {
      return absl::InvalidArgumentError(
          absl::StrCat("page_size is ", page_size, ", expected 0 to ", kMaxListPageSize));
    }
    const auto sessions = services_.sessions.List(frame.tenant(), request->page_token(),
                                                  static_cast<std::size_t>(page_size) + 1);
    for (std::size_t i = 0; i < sessions.size() && i < static_cast<std::size_t>(page_size); ++i) {
      EncodeSession(services_.sessions, *sessions[i], response->add_sessions());
    }
    if (sessions.size() > static_cast<std::size_t>(page_size)) {
      response->set_next_page_token(sessions[page_size - 1]->session_id);
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* SessionServiceImpl::DeleteSession(grpc::CallbackServerContext* context,
                                                            const v1::DeleteSessionRequest* request,
                                                            v1::DeleteSessionResponse*) {
  return AnswerNow(
      services_, "SessionService/DeleteSession", *context, [&](const CallFrame& frame) {
        return services_.sessions.Delete(DecodeHandle(request->handle()), frame.tenant());
      });
}

grpc::ServerUnaryReactor* SessionServiceImpl::Step(grpc::CallbackServerContext* context,
                                                   const v1::StepRequest* wire,
                                                   v1::StepResponse* response) {
  auto* call = new StepReactor(services_, "SessionService/Step", *context);
  std::unique_ptr<AttentionRequest> request = call->frame().MakeRequest();
  request->completion = [this, call](std::unique_ptr<AttentionRequest>, AttentionResult result) {
    call->step.Complete(services_, result);
    call->Finish(result.status);
  };
  absl::Status status = call->frame().status();
  if (status.ok()) {
    status = call->step.Begin(services_, call->frame(), *wire, response, request.get());
  }
  if (status.ok()) status = services_.scheduler.Submit(request);
  if (!status.ok()) call->Finish(status);
  return call;
}

grpc::ServerBidiReactor<v1::StepStreamRequest, v1::StepStreamResponse>*
SessionServiceImpl::StepStream(grpc::CallbackServerContext* context) {
  auto stream =
      std::make_shared<StepStreamReactor>(services_, "SessionService/StepStream", *context);
  stream->Start(registry_);
  return stream.get();
}

}  // namespace attention::server
