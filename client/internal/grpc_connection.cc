#include "client/internal/grpc_connection.h"

#include <future>
#include <utility>

#include "client/internal/convert.h"
#include "client/internal/future.h"
#include "client/internal/grpc_step_stream.h"
#include "client/internal/page_token.h"
#include "client/internal/status_macros.h"
#include "client/internal/weights_call.h"

namespace attention::client::internal {
namespace {

// Adapts a callback for a public result to one for the answer it is read from;
// `convert(message, received)` makes the one of the other.
template <typename Message, typename Result, typename Convert>
AnswerCallback Reading(Callback<Result> done, Convert convert) {
  return [done = std::move(done), convert](const absl::StatusOr<grpc::ByteBuffer>& answer, size_t) {
    if (!answer.ok()) return done(answer.status());
    done(ReadAnswer<Message>(*answer, convert));
  };
}

// For messages with tensors.
constexpr auto kFromWire = [](const auto& message, const codec::ReceivedMessage& received) {
  return FromWire(message, received);
};

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

absl::StatusOr<grpc::ByteBuffer> GrpcConnection::Check(
    const CallOptions& options, absl::StatusOr<codec::OutgoingMessage> request) const {
  ATTN_RETURN_IF_ERROR(CheckOptions(options));
  if (!request.ok()) return std::move(request).status();
  return transport_->Serialize(*std::move(request));
}

void GrpcConnection::CallAny(const CallOptions& options, const char* method,
                             absl::StatusOr<codec::OutgoingMessage> request, AnswerCallback done) {
  absl::StatusOr<grpc::ByteBuffer> bytes = Check(options, std::move(request));
  if (!bytes.ok()) return done(std::move(bytes).status(), 0);
  transport_->Unary(transport_->Settings(options), transport_->AnyTarget(), method,
                    *std::move(bytes), std::move(done));
}

void GrpcConnection::CallOwner(const std::string& worker, const CallOptions& options,
                               const char* method, absl::StatusOr<codec::OutgoingMessage> request,
                               AnswerCallback done) {
  absl::StatusOr<grpc::ByteBuffer> bytes = Check(options, std::move(request));
  if (!bytes.ok()) return done(std::move(bytes).status(), 0);
  CallSettings settings = transport_->Settings(options);
  // A search would end on one of gRPC's threads, which must not block.
  if (!transport_->targets().TargetOf(worker).has_value()) settings.may_block = false;
  transport_->FindOwner(worker, settings,
                        [transport = transport_, settings, method, bytes = *std::move(bytes),
                         done = std::move(done)](absl::StatusOr<size_t> target) {
                          if (!target.ok()) return done(std::move(target).status(), 0);
                          transport->Unary(settings, Transport::OneTarget(*target), method, bytes,
                                           done);
                        });
}

void GrpcConnection::Attend(const AttendRequest& request, const CallOptions& options,
                            Callback<AttendResult> done) {
  CallAny(options, ATTN_METHOD(AttentionService, Attend), ToWire(request),
          Reading<v1::AttendResponse>(std::move(done), kFromWire));
}

void GrpcConnection::AttendWithWeights(const AttendRequest& request, const CallOptions& options,
                                       WeightsCallback on_block, Callback<AttendResult> done) {
  absl::StatusOr<grpc::ByteBuffer> bytes = Check(options, WeightsRequest(request));
  if (!bytes.ok()) return done(std::move(bytes).status());
  StartWeightsCall(transport_, transport_->Settings(options), *std::move(bytes),
                   std::move(on_block), std::move(done));
}

void GrpcConnection::CreateSession(const SessionOptions& request, const CallOptions& options,
                                   Callback<SessionInfo> done) {
  v1::CreateSessionRequest message;
  ToProto(request, &message);
  CallAny(options, ATTN_METHOD(SessionService, CreateSession), codec::OutgoingMessage(message),
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
  CallOwner(handle.worker, options, ATTN_METHOD(SessionService, GetSession),
            codec::OutgoingMessage(message),
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
  absl::StatusOr<grpc::ByteBuffer> bytes = Check(options, codec::OutgoingMessage(message));
  if (!bytes.ok()) return done(std::move(bytes).status());
  transport_->Unary(
      transport_->Settings(options), Transport::OneTarget(token->target),
      ATTN_METHOD(SessionService, ListSessions), *std::move(bytes),
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
  CallOwner(handle.worker, options, ATTN_METHOD(SessionService, DeleteSession),
            codec::OutgoingMessage(message),
            [done = std::move(done)](const absl::StatusOr<grpc::ByteBuffer>& answer, size_t) {
              done(answer.status());
            });
}

void GrpcConnection::Step(const StepRequest& request, const CallOptions& options,
                          Callback<StepResult> done) {
  CallOwner(request.steps.empty() ? "" : request.steps[0].handle.worker, options,
            ATTN_METHOD(SessionService, Step), ToWire(request),
            Reading<v1::StepResponse>(std::move(done), kFromWire));
}

void GrpcConnection::GetServerInfo(const CallOptions& options, Callback<ServerInfo> done) {
  CallAny(options, ATTN_METHOD(ServerService, GetServerInfo),
          codec::OutgoingMessage(v1::GetServerInfoRequest()),
          Reading<v1::GetServerInfoResponse>(std::move(done), kFromProto));
}

void GrpcConnection::Explain(const ExplainRequest& request, const CallOptions& options,
                             Callback<ExplainResult> done) {
  CallAny(options, ATTN_METHOD(ServerService, Explain), ToWire(request),
          Reading<v1::ExplainResponse>(std::move(done), kFromProto));
}

absl::StatusOr<std::unique_ptr<StepStream>> GrpcConnection::OpenStepStream(
    const StepStreamOptions& options) {
  ATTN_RETURN_IF_ERROR(CheckOptions(options.call));
  if (options.max_outstanding < 1) {
    return absl::InvalidArgumentError("max_outstanding: expected at least 1");
  }
  std::future<absl::StatusOr<size_t>> owner = FutureOf<absl::StatusOr<size_t>>([&](auto done) {
    transport_->FindOwner(options.worker, transport_->Settings(options.call), std::move(done));
  });
  ATTN_ASSIGN_OR_RETURN(const size_t target, owner.get());
  // A stream is meant to last, so the client's default timeout does not apply to it.
  const CallSettings settings = ResolveSettings(
      transport_->options(), options.call, transport_->timer().Now(), absl::InfiniteDuration());
  return std::make_unique<GrpcStepStream>(transport_, target, settings, options.max_outstanding);
}

absl::Status GrpcConnection::WaitUntilReady(absl::Time deadline) {
  return transport_->targets().WaitUntilReady(deadline);
}

}  // namespace attention::client::internal
