#include "client/internal/connection/grpc_connection.h"

#include <cstdint>
#include <future>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "client/internal/base/future.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/call/acceptance.h"
#include "client/internal/call/owner_search.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/page_token.h"
#include "client/internal/shared_memory/shared_memory_call.h"
#include "client/internal/stream/archive_calls.h"
#include "client/internal/stream/grpc_step_stream.h"
#include "client/internal/stream/weights_call.h"

namespace attention::client::internal {
namespace {

// For answers with tensors.
constexpr auto kFromWire = [](const auto& message, const codec::ReceivedMessage& received) {
  return FromWire(message, received);
};

// For answers without.
constexpr auto kFromProto = [](auto& message, const codec::ReceivedMessage&) {
  return FromProto(std::move(message));
};

// For answers that hold a session and nothing else.
constexpr auto kSessionFromProto = [](auto& message, const codec::ReceivedMessage&) {
  return FromProto(std::move(*message.mutable_session()));
};

// For answers that hold sessions and nothing else.
constexpr auto kSessionsFromProto =
    [](auto& message, const codec::ReceivedMessage&) -> absl::StatusOr<std::vector<SessionInfo>> {
  std::vector<SessionInfo> sessions;
  sessions.reserve(static_cast<std::size_t>(message.sessions_size()));
  for (v1::Session& session : *message.mutable_sessions()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(SessionInfo info, FromProto(std::move(session)));
    sessions.push_back(std::move(info));
  }
  return sessions;
};

// Every attempt of a call asks for the same change.
std::uint64_t IdOfChange(std::uint64_t given) {
  return given != 0 ? given : absl::HashOf(NewUniqueId()) | 1;
}

std::shared_ptr<SharedMemoryChannels> MakeSharedMemory(
    const std::shared_ptr<Transport>& transport) {
  if (transport->options().shared_memory.use == SharedMemoryOptions::Use::kOff) return nullptr;
  return std::make_shared<SharedMemoryChannels>(transport);
}

}  // namespace

GrpcConnection::GrpcConnection(const ClientOptions& options, std::shared_ptr<Timer> timer,
                               RandomSource random)
    : transport_(std::make_shared<Transport>(options, std::move(timer), std::move(random))),
      shared_memory_(MakeSharedMemory(transport_)) {}

GrpcConnection::Prepared GrpcConnection::Prepare(
    const CallOptions& options, absl::StatusOr<codec::OutgoingMessage> request) const {
  ATTENTION_CLIENT_RETURN_IF_ERROR(CheckOptions(options));
  if (!request.ok()) return std::move(request).status();
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(grpc::ByteBuffer bytes,
                                    transport_->Serialize(*std::move(request)));
  return std::make_shared<FixedRequest>(std::move(bytes));
}

void GrpcConnection::CallAny(const CallOptions& options, const char* method,
                             absl::StatusOr<codec::OutgoingMessage> request, AnswerCallback done) {
  Route route = transport_->AnyTarget();
  Prepared prepared = Prepare(options, std::move(request));
  if (!prepared.ok()) return done(std::move(prepared).status(), 0);
  RunUnary(transport_, {transport_->Settings(options), std::move(route), method},
           *std::move(prepared), std::move(done));
}

void GrpcConnection::CallOwner(const std::string& server_name, const CallOptions& options,
                               const char* method, absl::StatusOr<codec::OutgoingMessage> request,
                               AnswerCallback done) {
  Prepared prepared = Prepare(options, std::move(request));
  if (!prepared.ok()) return done(std::move(prepared).status(), 0);
  CallSettings settings = transport_->Settings(options);
  // A search would end on one of gRPC's threads, which must not block.
  if (!transport_->targets().TargetOf(server_name).has_value()) settings.may_block = false;
  FindOwner(transport_, server_name, settings,
            [transport = transport_, settings, method, request = *std::move(prepared),
             done = std::move(done)](absl::StatusOr<std::size_t> target) {
              if (!target.ok()) return done(std::move(target).status(), 0);
              RunUnary(transport, {settings, Transport::OneTarget(*target), method}, request, done);
            });
}

void GrpcConnection::Attend(const AttendRequest& request, const CallOptions& options,
                            Callback<AttendResult> done) {
  static constexpr char kMethod[] = ATTENTION_CLIENT_METHOD(AttentionService, Attend);
  if (absl::Status status = CheckOptions(options); !status.ok()) return done(std::move(status));
  Route route = transport_->AnyTarget();
  auto shared = ShareRequest(shared_memory_, route(1), request,
                             [](const AttendRequest& given, const TensorRefs* refs) {
                               return ToWire(given, /*weights=*/false, refs);
                             });
  if (shared != nullptr) {
    return RunShared<v1::AttendResponse>(transport_,
                                         {transport_->Settings(options), std::move(route), kMethod},
                                         std::move(shared), std::move(done));
  }
  Prepared prepared = Prepare(options, ToWire(request));
  if (!prepared.ok()) return done(std::move(prepared).status());
  RunUnary(transport_, {transport_->Settings(options), std::move(route), kMethod},
           *std::move(prepared), Reading<v1::AttendResponse>(std::move(done), kFromWire));
}

void GrpcConnection::AttendWithWeights(const AttendRequest& request, const CallOptions& options,
                                       WeightsCallback on_block, Callback<AttendResult> done) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return done(std::move(status));
  Route route = transport_->AnyTarget();
  auto shared = ShareRequest(shared_memory_, route(1), request, WeightsRequest);
  Prepared prepared =
      shared != nullptr ? Prepared(shared) : Prepare(options, WeightsRequest(request, nullptr));
  if (!prepared.ok()) return done(std::move(prepared).status());
  StartWeightsCall(transport_, std::move(route), transport_->Settings(options),
                   *std::move(prepared), std::move(shared), std::move(on_block), std::move(done));
}

void GrpcConnection::CreateSession(const SessionOptions& request, const CallOptions& options,
                                   Callback<SessionInfo> done) {
  v1::CreateSessionRequest message;
  ToProto(request, &message);
  // Every attempt asks for the same session.
  if (request.name.empty()) message.set_name(NewUniqueId());
  CallAny(options, ATTENTION_CLIENT_METHOD(SessionService, CreateSession),
          codec::OutgoingMessage(message),
          [transport = transport_, done = std::move(done)](
              const absl::StatusOr<grpc::ByteBuffer>& answer, std::size_t target) {
            if (!answer.ok()) return done(answer.status());
            auto info = ReadAnswer<v1::CreateSessionResponse>(*answer, kSessionFromProto);
            if (info.ok()) transport->targets().Learn(info->handle.server_name, target);
            done(std::move(info));
          });
}

void GrpcConnection::GetSession(const SessionHandle& handle, const CallOptions& options,
                                Callback<SessionInfo> done) {
  v1::GetSessionRequest message;
  ToProto(handle, message.mutable_handle());
  CallOwner(handle.server_name, options, ATTENTION_CLIENT_METHOD(SessionService, GetSession),
            codec::OutgoingMessage(message),
            Reading<v1::GetSessionResponse>(std::move(done), kSessionFromProto));
}

void GrpcConnection::ListSessions(const ListSessionsRequest& request, const CallOptions& options,
                                  Callback<ListSessionsResult> done) {
  const std::size_t num_targets = transport_->targets().size();
  absl::StatusOr<PageToken> token = ParsePageToken(request.page_token, num_targets);
  if (!token.ok()) return done(std::move(token).status());
  v1::ListSessionsRequest message;
  ToProto(request, &message);
  message.set_page_token(token->token);
  Prepared prepared = Prepare(options, codec::OutgoingMessage(message));
  if (!prepared.ok()) return done(std::move(prepared).status());
  RunUnary(
      transport_,
      {transport_->Settings(options), Transport::OneTarget(token->target),
       ATTENTION_CLIENT_METHOD(SessionService, ListSessions)},
      *std::move(prepared),
      [num_targets, done = std::move(done)](const absl::StatusOr<grpc::ByteBuffer>& answer,
                                            std::size_t target) {
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
  CallOwner(handle.server_name, options, ATTENTION_CLIENT_METHOD(SessionService, DeleteSession),
            codec::OutgoingMessage(message),
            [done = std::move(done)](const absl::StatusOr<grpc::ByteBuffer>& answer, std::size_t) {
              done(answer.status());
            });
}

void GrpcConnection::ForkSession(const ForkSessionRequest& request, const CallOptions& options,
                                 Callback<std::vector<SessionInfo>> done) {
  v1::ForkSessionRequest message;
  ToProto(request, &message);
  // Every attempt asks for the same copies.
  if (request.names.empty()) {
    for (int i = 0; i < request.num_copies; ++i) message.add_names(NewUniqueId());
  }
  CallOwner(request.handle.server_name, options,
            ATTENTION_CLIENT_METHOD(SessionService, ForkSession), codec::OutgoingMessage(message),
            Reading<v1::ForkSessionResponse>(std::move(done), kSessionsFromProto));
}

void GrpcConnection::TruncateSession(const TruncateSessionRequest& request,
                                     const CallOptions& options, Callback<SessionInfo> done) {
  v1::TruncateSessionRequest message;
  ToProto(request.handle, message.mutable_handle());
  message.set_length(request.length);
  for (const int token : request.accepted) message.add_accepted(token);
  message.set_change_id(IdOfChange(request.change_id));
  CallOwner(request.handle.server_name, options,
            ATTENTION_CLIENT_METHOD(SessionService, TruncateSession),
            codec::OutgoingMessage(message),
            Reading<v1::TruncateSessionResponse>(std::move(done), kSessionFromProto));
}

void GrpcConnection::KeepTokens(const KeepTokensRequest& request, const CallOptions& options,
                                Callback<SessionInfo> done) {
  absl::StatusOr<v1::KeepTokensRequest> message = ToProto(request);
  if (!message.ok()) return done(std::move(message).status());
  message->set_change_id(IdOfChange(request.change_id));
  CallOwner(request.handle.server_name, options,
            ATTENTION_CLIENT_METHOD(SessionService, KeepTokens), codec::OutgoingMessage(*message),
            Reading<v1::KeepTokensResponse>(std::move(done), kSessionFromProto));
}

void GrpcConnection::GetKeysValues(const GetKeysValuesRequest& request, const CallOptions& options,
                                   Callback<KeysValues> done) {
  v1::GetKeysValuesRequest message;
  ToProto(request.handle, message.mutable_handle());
  message.set_layer(request.layer);
  message.set_begin(request.begin);
  if (request.end.has_value()) message.set_end(*request.end);
  CallOwner(request.handle.server_name, options,
            ATTENTION_CLIENT_METHOD(SessionService, GetKeysValues), codec::OutgoingMessage(message),
            Reading<v1::GetKeysValuesResponse>(std::move(done), kFromWire));
}

absl::Status GrpcConnection::ExportSession(const ExportSessionRequest& request,
                                           const CallOptions& options, std::ostream& archive) {
  ATTENTION_CLIENT_RETURN_IF_ERROR(CheckOptions(options));
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(
      const std::size_t target,
      TargetOf({.server_name = request.handle.server_name, .call = options}));
  return internal::ExportSession(transport_, target, transport_->StreamSettings(options), request,
                                 archive);
}

absl::StatusOr<SessionInfo> GrpcConnection::ImportSession(const ImportSessionRequest& request,
                                                          const CallOptions& options,
                                                          std::istream& archive) {
  ATTENTION_CLIENT_RETURN_IF_ERROR(CheckOptions(options));
  std::size_t target = 0;
  if (request.target.has_value()) {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(target,
                                      TargetOf({.target = *request.target, .call = options}));
  } else {
    target = transport_->AnyTarget()(1);
  }
  absl::StatusOr<SessionInfo> info = internal::ImportSession(
      transport_, target, transport_->StreamSettings(options), request, archive);
  if (info.ok()) transport_->targets().Learn(info->handle.server_name, target);
  return info;
}

void GrpcConnection::AttachSession(const SessionHandle& handle, const CallOptions& options,
                                   Callback<SessionInfo> done) {
  v1::AttachSessionRequest message;
  ToProto(handle, message.mutable_handle());
  CallOwner(handle.server_name, options, ATTENTION_CLIENT_METHOD(SessionService, AttachSession),
            codec::OutgoingMessage(message),
            Reading<v1::AttachSessionResponse>(std::move(done), kSessionFromProto));
}

void GrpcConnection::ReorderSessions(const ReorderSessionsRequest& request,
                                     const CallOptions& options,
                                     Callback<std::vector<SessionInfo>> done) {
  v1::ReorderSessionsRequest message;
  ToProto(request, &message);
  message.set_reorder_id(IdOfChange(request.reorder_id));
  const std::string server_name = request.handles.empty() ? "" : request.handles[0].server_name;
  CallOwner(server_name, options, ATTENTION_CLIENT_METHOD(SessionService, ReorderSessions),
            codec::OutgoingMessage(message),
            Reading<v1::ReorderSessionsResponse>(std::move(done), kSessionsFromProto));
}

void GrpcConnection::Step(const StepRequest& request, const CallOptions& options,
                          Callback<StepResult> done) {
  static constexpr char kMethod[] = ATTENTION_CLIENT_METHOD(SessionService, Step);
  if (absl::Status status = CheckOptions(options); !status.ok()) return done(std::move(status));
  const std::string server_name = request.steps.empty() ? "" : request.steps[0].handle.server_name;
  const std::optional<std::size_t> owner = transport_->targets().TargetOf(server_name);
  std::shared_ptr<SharedMemoryRequest> shared;
  if (owner.has_value()) {
    shared = ShareRequest(
        shared_memory_, *owner, request,
        [](const StepRequest& given, const TensorRefs* refs) { return ToWire(given, refs); });
  }
  if (shared != nullptr) {
    return RunShared<v1::StepResponse>(
        transport_, {transport_->Settings(options), Transport::OneTarget(*owner), kMethod},
        std::move(shared), std::move(done));
  }
  CallOwner(server_name, options, kMethod, ToWire(request),
            Reading<v1::StepResponse>(std::move(done), kFromWire));
}

void GrpcConnection::GetServerInfo(const CallOptions& options, Callback<ServerInfo> done) {
  CallAny(options, ATTENTION_CLIENT_METHOD(ServerService, GetServerInfo),
          codec::OutgoingMessage(v1::GetServerInfoRequest()),
          Reading<v1::GetServerInfoResponse>(std::move(done), kFromProto));
}

void GrpcConnection::Explain(const ExplainRequest& request, const CallOptions& options,
                             Callback<ExplainResult> done) {
  CallAny(options, ATTENTION_CLIENT_METHOD(ServerService, Explain), ToWire(request),
          Reading<v1::ExplainResponse>(std::move(done), kFromProto));
}

absl::StatusOr<std::size_t> GrpcConnection::TargetOf(const StepStreamOptions& options) const {
  if (!options.server_name.empty()) {
    return FutureOf<absl::StatusOr<std::size_t>>([&](auto done) {
             FindOwner(transport_, options.server_name, transport_->Settings(options.call),
                       std::move(done));
           })
        .get();
  }
  const auto count = static_cast<int>(transport_->targets().size());
  if (options.target >= 0 && options.target < count)
    return static_cast<std::size_t>(options.target);
  return absl::InvalidArgumentError(
      absl::StrCat("target is ", options.target, ", expected 0 to ", count - 1));
}

absl::StatusOr<std::unique_ptr<StepStream>> GrpcConnection::OpenStepStream(
    const StepStreamOptions& options) {
  ATTENTION_CLIENT_RETURN_IF_ERROR(CheckOptions(options.call));
  if (options.max_outstanding < 1) {
    return absl::InvalidArgumentError("max_outstanding: expected at least 1");
  }
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(const std::size_t target, TargetOf(options));
  return GrpcStepStream::Open(transport_, shared_memory_, target,
                              transport_->StreamSettings(options.call), options.max_outstanding);
}

absl::Status GrpcConnection::WaitUntilReady(absl::Time deadline) {
  ATTENTION_CLIENT_RETURN_IF_ERROR(transport_->targets().WaitUntilReady(deadline));
  ATTENTION_CLIENT_RETURN_IF_ERROR(CheckAccepted(*transport_, deadline));
  if (shared_memory_ != nullptr) shared_memory_->WaitUntilTried(deadline);
  return absl::OkStatus();
}

absl::StatusOr<SharedTensor> GrpcConnection::AllocateShared(DType dtype, Shape shape) {
  const TensorView view(nullptr, dtype, shape);
  const bool may_share = shared_memory_ != nullptr && view.num_elements() > 0;
  if (may_share && view.num_elements() <= transport_->options().shared_memory.max_bytes) {
    auto slot = shared_memory_->AllocateForUser(view.num_bytes());
    if (slot != nullptr) {
      char* data = slot->data();
      return SharedTensor(dtype, std::move(shape), data, /*is_shared=*/true, std::move(slot));
    }
  }
  return SharedTensor::Private(dtype, std::move(shape));
}

SharedMemoryUsage GrpcConnection::shared_memory_usage() const {
  return shared_memory_ != nullptr ? shared_memory_->usage() : SharedMemoryUsage();
}

}  // namespace attention::client::internal
