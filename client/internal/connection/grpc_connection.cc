#include "client/internal/connection/grpc_connection.h"

#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/base/future.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/call/weights_call.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/page_token.h"
#include "client/internal/stream/grpc_step_stream.h"

namespace attention::client::internal {
namespace {

// The same for a request that may have gone by shared memory. A target that does not know the
// memory is sent the tensors.
template <typename Message, typename Result>
AnswerCallback ReadingShared(std::shared_ptr<Transport> transport, const CallSettings& settings,
                             const char* method, std::shared_ptr<OutgoingRequest> request,
                             Callback<Result> done) {
  return [=](const absl::StatusOr<grpc::ByteBuffer>& answer, size_t target) {
    const auto convert = [&](const Message& message, const codec::ReceivedMessage& received) {
      return FromWire(message, received, request->refs().get());
    };
    absl::StatusOr<Result> result = answer.ok() ? ReadAnswer<Message>(*answer, convert)
                                                : absl::StatusOr<Result>(answer.status());
    if (!request->TakeBackIfLost(RegionStatus(result), target)) return done(std::move(result));
    CallSettings again = settings;
    again.may_block = false;  // this may be one of gRPC's threads
    transport->Unary(again, Transport::OneTarget(target), method, request,
                     ReadingShared<Message>(transport, again, method, request, done));
  };
}

// For messages without.
constexpr auto kFromProto = [](auto& message, const codec::ReceivedMessage&) {
  return FromProto(std::move(message));
};

// For messages that hold a session and nothing else.
constexpr auto kSessionFromProto = [](auto& message, const codec::ReceivedMessage&) {
  return FromProto(std::move(*message.mutable_session()));
};

}  // namespace

GrpcConnection::GrpcConnection(const ClientOptions& options, std::shared_ptr<Timer> timer,
                               RandomSource random)
    : transport_(std::make_shared<Transport>(options, std::move(timer), std::move(random))) {}

GrpcConnection::Prepared GrpcConnection::Prepare(
    const CallOptions& options, absl::StatusOr<codec::OutgoingMessage> request) const {
  ATTN_RETURN_IF_ERROR(CheckOptions(options));
  if (!request.ok()) return std::move(request).status();
  ATTN_ASSIGN_OR_RETURN(grpc::ByteBuffer bytes, transport_->Serialize(*std::move(request)));
  return std::make_shared<OutgoingRequest>(std::move(bytes));
}

template <typename Request, typename Encode>
GrpcConnection::Prepared GrpcConnection::PrepareShared(const CallOptions& options,
                                                       std::optional<size_t> target,
                                                       const Request& request,
                                                       Encode encode) const {
  ATTN_RETURN_IF_ERROR(CheckOptions(options));
  if (target.has_value()) {
    auto shared = ShareRequest(transport_->shared_memory(), *target, request, encode);
    if (shared != nullptr) return shared;
  }
  return Prepare(options, encode(request, nullptr));
}

void GrpcConnection::CallAny(const CallSettings& settings, const char* method, Prepared request,
                             AnswerCallback done) {
  CallAlong(transport_->AnyTarget(), settings, method, std::move(request), std::move(done));
}

void GrpcConnection::CallAlong(Route route, const CallSettings& settings, const char* method,
                               Prepared request, AnswerCallback done) {
  if (!request.ok()) return done(std::move(request).status(), 0);
  transport_->Unary(settings, std::move(route), method, *std::move(request), std::move(done));
}

void GrpcConnection::CallOwner(const std::string& worker, CallSettings settings, const char* method,
                               Prepared request, AnswerCallback done) {
  if (!request.ok()) return done(std::move(request).status(), 0);
  // A search would end on one of gRPC's threads, which must not block.
  if (!transport_->targets().TargetOf(worker).has_value()) settings.may_block = false;
  transport_->FindOwner(worker, settings,
                        [transport = transport_, settings, method, request = *std::move(request),
                         done = std::move(done)](absl::StatusOr<size_t> target) {
                          if (!target.ok()) return done(std::move(target).status(), 0);
                          transport->Unary(settings, Transport::OneTarget(*target), method, request,
                                           done);
                        });
}

void GrpcConnection::Attend(const AttendRequest& request, const CallOptions& options,
                            Callback<AttendResult> done) {
  static constexpr char kMethod[] = ATTN_METHOD(AttentionService, Attend);
  const Route route = transport_->AnyTarget();
  const Prepared prepared = PrepareShared(
      options, route(1), request, [](const AttendRequest& given, const SharedTensorRefs* refs) {
        return ToWire(given, /*weights=*/false, refs);
      });
  if (!prepared.ok()) return done(prepared.status());
  const CallSettings settings = transport_->Settings(options);
  CallAlong(
      route, settings, kMethod, prepared,
      ReadingShared<v1::AttendResponse>(transport_, settings, kMethod, *prepared, std::move(done)));
}

void GrpcConnection::AttendWithWeights(const AttendRequest& request, const CallOptions& options,
                                       WeightsCallback on_block, Callback<AttendResult> done) {
  const Route route = transport_->AnyTarget();
  Prepared prepared = PrepareShared(options, route(1), request, WeightsRequest);
  if (!prepared.ok()) return done(std::move(prepared).status());
  StartWeightsCall(transport_, route, transport_->Settings(options), *std::move(prepared),
                   std::move(on_block), std::move(done));
}

void GrpcConnection::CreateSession(const SessionOptions& request, const CallOptions& options,
                                   Callback<SessionInfo> done) {
  v1::CreateSessionRequest message;
  ToProto(request, &message);
  // Every attempt asks for the same session.
  if (request.name.empty()) message.set_name(NewUniqueId());
  CallAny(transport_->Settings(options), ATTN_METHOD(SessionService, CreateSession),
          Prepare(options, codec::OutgoingMessage(message)),
          [transport = transport_, done = std::move(done)](
              const absl::StatusOr<grpc::ByteBuffer>& answer, size_t target) {
            if (!answer.ok()) return done(answer.status());
            auto info = ReadAnswer<v1::CreateSessionResponse>(*answer, kSessionFromProto);
            if (info.ok()) transport->targets().Learn(info->handle.worker, target);
            done(std::move(info));
          });
}

void GrpcConnection::GetSession(const SessionHandle& handle, const CallOptions& options,
                                Callback<SessionInfo> done) {
  v1::GetSessionRequest message;
  ToProto(handle, message.mutable_handle());
  CallOwner(handle.worker, transport_->Settings(options), ATTN_METHOD(SessionService, GetSession),
            Prepare(options, codec::OutgoingMessage(message)),
            Reading<v1::GetSessionResponse>(std::move(done), kSessionFromProto));
}

void GrpcConnection::ListSessions(const ListSessionsRequest& request, const CallOptions& options,
                                  Callback<ListSessionsResult> done) {
  const size_t num_targets = transport_->targets().size();
  absl::StatusOr<PageToken> token = ParsePageToken(request.page_token, num_targets);
  if (!token.ok()) return done(std::move(token).status());
  v1::ListSessionsRequest message;
  message.set_page_size(request.page_size);
  message.set_page_token(token->token);
  Prepared prepared = Prepare(options, codec::OutgoingMessage(message));
  if (!prepared.ok()) return done(std::move(prepared).status());
  transport_->Unary(
      transport_->Settings(options), Transport::OneTarget(token->target),
      ATTN_METHOD(SessionService, ListSessions), *std::move(prepared),
      [num_targets, done = std::move(done)](const absl::StatusOr<grpc::ByteBuffer>& answer,
                                            size_t target) {
        if (!answer.ok()) return done(answer.status());
        absl::StatusOr<ListSessionsResult> result =
            ReadAnswer<v1::ListSessionsResponse>(*answer, kFromProto);
        if (result.ok()) {
          result->next_page_token = NextPageToken({target, result->next_page_token}, num_targets);
        }
        done(std::move(result));
      });
}

void GrpcConnection::DeleteSession(const SessionHandle& handle, const CallOptions& options,
                                   StatusCallback done) {
  v1::DeleteSessionRequest message;
  ToProto(handle, message.mutable_handle());
  CallOwner(handle.worker, transport_->Settings(options),
            ATTN_METHOD(SessionService, DeleteSession),
            Prepare(options, codec::OutgoingMessage(message)),
            [done = std::move(done)](const absl::StatusOr<grpc::ByteBuffer>& answer, size_t) {
              done(answer.status());
            });
}

void GrpcConnection::Step(const StepRequest& request, const CallOptions& options,
                          Callback<StepResult> done) {
  static constexpr char kMethod[] = ATTN_METHOD(SessionService, Step);
  const std::string worker = request.steps.empty() ? "" : request.steps[0].handle.worker;
  const Prepared prepared = PrepareShared(
      options, transport_->targets().TargetOf(worker), request,
      [](const StepRequest& given, const SharedTensorRefs* refs) { return ToWire(given, refs); });
  if (!prepared.ok()) return done(prepared.status());
  const CallSettings settings = transport_->Settings(options);
  CallOwner(
      worker, settings, kMethod, prepared,
      ReadingShared<v1::StepResponse>(transport_, settings, kMethod, *prepared, std::move(done)));
}

void GrpcConnection::GetServerInfo(const CallOptions& options, Callback<ServerInfo> done) {
  CallAny(transport_->Settings(options), ATTN_METHOD(ServerService, GetServerInfo),
          Prepare(options, codec::OutgoingMessage(v1::GetServerInfoRequest())),
          Reading<v1::GetServerInfoResponse>(std::move(done), kFromProto));
}

void GrpcConnection::Explain(const ExplainRequest& request, const CallOptions& options,
                             Callback<ExplainResult> done) {
  CallAny(transport_->Settings(options), ATTN_METHOD(ServerService, Explain),
          Prepare(options, ToWire(request)),
          Reading<v1::ExplainResponse>(std::move(done), kFromProto));
}

absl::StatusOr<size_t> GrpcConnection::TargetOf(const StepStreamOptions& options) const {
  if (!options.worker.empty()) {
    return FutureOf<absl::StatusOr<size_t>>([&](auto done) {
             transport_->FindOwner(options.worker, transport_->Settings(options.call),
                                   std::move(done));
           })
        .get();
  }
  const auto count = static_cast<int>(transport_->targets().size());
  if (options.target >= 0 && options.target < count) return static_cast<size_t>(options.target);
  return absl::InvalidArgumentError(
      absl::StrCat("target is ", options.target, ", expected 0 to ", count - 1));
}

absl::StatusOr<std::unique_ptr<StepStream>> GrpcConnection::OpenStepStream(
    const StepStreamOptions& options) {
  ATTN_RETURN_IF_ERROR(CheckOptions(options.call));
  if (options.max_outstanding < 1) {
    return absl::InvalidArgumentError("max_outstanding: expected at least 1");
  }
  ATTN_ASSIGN_OR_RETURN(const size_t target, TargetOf(options));
  // A stream is meant to last, so the client's default timeout does not apply to it.
  const CallSettings settings = ResolveSettings(
      transport_->options(), options.call, transport_->timer().Now(), absl::InfiniteDuration());
  return std::make_unique<GrpcStepStream>(transport_, target, settings, options.max_outstanding);
}

absl::Status GrpcConnection::WaitUntilReady(absl::Time deadline) {
  ATTN_RETURN_IF_ERROR(transport_->targets().WaitUntilReady(deadline));
  if (transport_->shared_memory() != nullptr) transport_->shared_memory()->WaitUntilTried(deadline);
  return absl::OkStatus();
}

absl::StatusOr<SharedTensor> GrpcConnection::AllocateShared(DType dtype, Shape shape) {
  const TensorView view(nullptr, dtype, shape);
  const bool may_share = transport_->shared_memory() != nullptr && view.num_elements() > 0;
  if (may_share && view.num_elements() <= transport_->options().shared_memory.max_bytes) {
    auto slot = transport_->shared_memory()->AllocateForUser(view.num_bytes());
    if (slot != nullptr) {
      char* data = slot->data();
      return SharedTensor(dtype, std::move(shape), data, /*is_shared=*/true, std::move(slot));
    }
  }
  return SharedTensor::Private(dtype, std::move(shape));
}

SharedMemoryUsage GrpcConnection::shared_memory_usage() const {
  return transport_->shared_memory() != nullptr ? transport_->shared_memory()->usage()
                                                : SharedMemoryUsage();
}

}  // namespace attention::client::internal
