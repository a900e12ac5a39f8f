#include "server/rpc/session_service.h"

#include <google/protobuf/arena.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/codec/dtypes.h"
#include "server/base/status_macros.h"
#include "server/rpc/status_mapping.h"
#include "server/rpc/step_call.h"
#include "server/wire/tensor_decoder.h"
#include "server/wire/timing_encoder.h"

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
  session.name = wire.name();
  if (wire.has_ttl()) {
    session.ttl = absl::Seconds(wire.ttl().seconds()) + absl::Nanoseconds(wire.ttl().nanos());
    if (session.ttl == absl::ZeroDuration()) {
      return absl::InvalidArgumentError("ttl is 0s, expected more than 0, or absent");
    }
  }
  return session;
}

void EncodeSession(const SessionTable& table, const Session& session, v1::Session* wire) {
  wire->mutable_handle()->set_server_name(table.server_name());
  wire->mutable_handle()->set_server_epoch(table.server_epoch());
  wire->mutable_handle()->set_session_id(session.session_id);
  const KvCache& cache = *session.cache;
  v1::SessionGeometry* geometry = wire->mutable_geometry();
  geometry->set_num_layers(cache.num_layers());
  geometry->set_num_kv_heads(cache.geometry().num_kv_heads);
  geometry->set_head_dim_qk(cache.geometry().head_dim_qk);
  geometry->set_head_dim_v(cache.geometry().head_dim_v);
  geometry->set_kv_dtype(codec::DTypeToWire(cache.geometry().dtype));
  for (int layer = 0; layer < cache.num_layers(); ++layer) {
    wire->add_layer_lengths(cache.length(layer));
  }
  wire->set_committed_length(cache.committed_length());
  wire->set_kv_bytes(cache.kv_bytes());
  EncodeDuration(session.ttl, wire->mutable_ttl());
  EncodeTime(session.create_time, wire->mutable_create_time());
  EncodeTime(session.expire_time(), wire->mutable_expire_time());
  wire->set_name(session.name);
}

// The session that is asked for, made or found by its name.
absl::StatusOr<SessionLease> CreateOrFind(const ServiceContext& services, const CallFrame& frame,
                                          const v1::CreateSessionRequest& request) {
  ATTENTION_RETURN_IF_ERROR(services.scheduler.CheckAccepting());
  ATTENTION_ASSIGN_OR_RETURN(SessionTable::NewSession decoded,
                             DecodeNewSession(request, frame.tenant()));
  return services.sessions.Create(std::move(decoded));
}

// One StepRequest, from arrival to its answer.
template <typename Wire>
class StepExchange {
  // Of the message's parts: a step is some ten, which cost more to allocate one by one than to
  // parse. The first block holds those of a step or two.
  alignas(std::max_align_t) char first_block_[2048];
  google::protobuf::Arena arena_{first_block_, sizeof(first_block_)};

 public:
  StepExchange(const ServiceContext& services, const CallFrame& frame)
      : call(services, frame, received) {}

  codec::ReceivedMessage received;
  std::size_t bytes = 0;  // of the received message
  Wire& wire = *google::protobuf::Arena::CreateMessage<Wire>(&arena_);
  StepCall call;
};

class StepStreamCall final : public PipelinedStream {
 public:
  using PipelinedStream::PipelinedStream;
  // Nothing of the stream is in flight any more.
  ~StepStreamCall() override {
    if (binding_ != 0) services().sessions.EndBound(binding_);
  }

 private:
  using Exchange = StepExchange<v1::StepStreamRequest>;

  absl::Status OnRequest(const grpc::ByteBuffer& bytes) override {
    auto exchange = std::make_shared<Exchange>(services(), frame());
    std::unique_ptr<AttentionRequest> request = frame().MakeRequest();
    exchange->bytes = bytes.Length();
    ATTENTION_RETURN_IF_ERROR(exchange->received.Parse(bytes, &exchange->wire));
    if (exchange->wire.has_create_session()) {
      CreateBound(*exchange);
      return absl::OkStatus();
    }
    absl::Status status = frame().CheckRoom(exchange->bytes);
    if (status.ok()) {
      status = exchange->call.Begin(frame(), exchange->wire.request(), request.get());
    }
    request->completion = [self = Self(), exchange](std::unique_ptr<AttentionRequest>,
                                                    AttentionResult result) {
      self->OnComputed(*exchange, result);
    };
    if (status.ok()) {
      status = services().scheduler.Submit(request, Scheduler::Start::kWithPending);
    }
    if (!status.ok()) SendError(*exchange, status);
    return absl::OkStatus();
  }

  void CreateBound(const Exchange& exchange) {
    const absl::Status status = ContainExceptions([&] {
      ATTENTION_ASSIGN_OR_RETURN(const SessionLease session,
                                 CreateOrFind(services(), frame(), exchange.wire.create_session()));
      if (binding_ == 0) binding_ = services().sessions.NewBinding();
      session->binding.store(binding_);
      v1::StepStreamResponse response;
      response.set_request_id(exchange.wire.request_id());
      EncodeSession(services().sessions, *session,
                    response.mutable_created_session()->mutable_session());
      Send({codec::OutgoingMessage(response).Serialize(), /*is_last=*/true, exchange.bytes});
      return absl::OkStatus();
    });
    if (!status.ok()) SendError(exchange, status);
  }

  void OnComputed(Exchange& exchange, AttentionResult& result) {
    const absl::Status status = ContainExceptions([&] {
      ATTENTION_RETURN_IF_ERROR(result.status);
      v1::StepStreamResponse small_fields;
      small_fields.set_request_id(exchange.wire.request_id());
      codec::OutgoingMessage response(small_fields);
      response.Add(v1::StepStreamResponse::kResponseFieldNumber, exchange.call.Complete(result));
      Send({std::move(response).Serialize(), /*is_last=*/true, exchange.bytes});
      return absl::OkStatus();
    });
    if (!status.ok()) SendError(exchange, status);
  }

  void SendError(const Exchange& exchange, const absl::Status& status) {
    SendLast(exchange.bytes, [&] {
      v1::StepStreamResponse response;
      response.set_request_id(exchange.wire.request_id());
      *response.mutable_error() = ToStreamError(status);
      return codec::OutgoingMessage(response).Serialize();
    });
  }

  std::shared_ptr<StepStreamCall> Self() {
    return std::static_pointer_cast<StepStreamCall>(shared_from_this());
  }

  std::uint64_t binding_ = 0;  // of the sessions that end with the stream; 0: there are none
};

}  // namespace

#define ATTENTION_UNARY_METHOD(NAME)                                              \
  UnaryMethod {                                                                   \
    services_, "SessionService/" #NAME,                                           \
        [this, index = IndexOf(#NAME)](auto* context, auto* channel, void* tag) { \
          RequestAtHeaders(index, context, channel, queue_, tag);                 \
        },                                                                        \
        [this](UnaryCall& call) { NAME(call); }                                   \
  }

SessionServiceImpl::SessionServiceImpl(const ServiceContext& services, StreamRegistry& registry)
    : services_(services),
      create_session_(ATTENTION_UNARY_METHOD(CreateSession)),
      get_session_(ATTENTION_UNARY_METHOD(GetSession)),
      list_sessions_(ATTENTION_UNARY_METHOD(ListSessions)),
      delete_session_(ATTENTION_UNARY_METHOD(DeleteSession)),
      step_(ATTENTION_UNARY_METHOD(Step)),
      step_stream_{
          services, "SessionService/StepStream", registry,
          [this](auto* context, auto* channel, void* tag) {
            RequestStepStream(context, channel, queue_, queue_, tag);
          },
          [](const StreamMethod& method) { return std::make_shared<StepStreamCall>(method); }} {}

void SessionServiceImpl::Listen(grpc::ServerCompletionQueue& queue) {
  queue_ = &queue;
  for (const UnaryMethod* method :
       {&create_session_, &get_session_, &list_sessions_, &delete_session_, &step_}) {
    UnaryCall::Listen(*method);
  }
  PipelinedStream::Listen(step_stream_);
}

void SessionServiceImpl::CreateSession(UnaryCall& call) {
  AnswerNow<v1::CreateSessionRequest, v1::CreateSessionResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        ATTENTION_ASSIGN_OR_RETURN(const SessionLease session,
                                   CreateOrFind(services_, frame, request));
        EncodeSession(services_.sessions, *session, response->mutable_session());
        return absl::OkStatus();
      });
}

void SessionServiceImpl::GetSession(UnaryCall& call) {
  AnswerNow<v1::GetSessionRequest, v1::GetSessionResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        ATTENTION_ASSIGN_OR_RETURN(
            const SessionLease session,
            services_.sessions.Acquire(DecodeHandle(request.handle()), frame.tenant()));
        EncodeSession(services_.sessions, *session, response->mutable_session());
        return absl::OkStatus();
      });
}

void SessionServiceImpl::ListSessions(UnaryCall& call) {
  AnswerNow<v1::ListSessionsRequest, v1::ListSessionsResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto* response) {
        const int page_size = request.page_size() == 0 ? kDefaultListPageSize : request.page_size();
        if (page_size < 0 || page_size > kMaxListPageSize) {
          return absl::InvalidArgumentError(
              absl::StrCat("page_size is ", page_size, ", expected 0 to ", kMaxListPageSize));
        }
        const auto limit = static_cast<std::size_t>(page_size);
        const auto sessions =
            services_.sessions.List(frame.tenant(), request.page_token(), limit + 1);
        for (std::size_t i = 0; i < sessions.size() && i < limit; ++i) {
          EncodeSession(services_.sessions, *sessions[i], response->add_sessions());
        }
        if (sessions.size() > limit) {
          response->set_next_page_token(sessions[limit - 1]->session_id);
        }
        return absl::OkStatus();
      });
}

void SessionServiceImpl::DeleteSession(UnaryCall& call) {
  AnswerNow<v1::DeleteSessionRequest, v1::DeleteSessionResponse>(
      call, [&](const CallFrame& frame, const auto& request, auto*) {
        return services_.sessions.Delete(DecodeHandle(request.handle()), frame.tenant());
      });
}

void SessionServiceImpl::Step(UnaryCall& call) {
  auto exchange = std::make_shared<StepExchange<v1::StepRequest>>(services_, call.frame());
  std::unique_ptr<AttentionRequest> request = call.frame().MakeRequest();
  absl::Status status = exchange->received.Parse(call.request(), &exchange->wire);
  if (status.ok()) status = call.frame().CheckRoom(call.request().Length());
  if (status.ok()) status = exchange->call.Begin(call.frame(), exchange->wire, request.get());
  call.ReleaseRequest();
  request->completion = [&call, exchange](std::unique_ptr<AttentionRequest>,
                                          AttentionResult result) {
    call.FinishWith([&]() -> absl::StatusOr<grpc::ByteBuffer> {
      ATTENTION_RETURN_IF_ERROR(result.status);
      return exchange->call.Complete(result).Serialize();
    });
  };
  if (status.ok()) {
    status = services_.scheduler.Submit(request, Scheduler::Start::kWithPending);
  }
  if (!status.ok()) call.Finish(status);
}

}  // namespace attention::server
