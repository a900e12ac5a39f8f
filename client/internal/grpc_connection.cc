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

// Adapts a callback for a public result to one for the message it is made from.
template <typename Response, typename Result>
auto Converting(Callback<Result> done) {
  return [done = std::move(done)](absl::StatusOr<Response> response) {
    if (!response.ok()) return done(std::move(response).status());
    done(FromProto(*std::move(response)));
  };
}

// The same for a call whose answering target does not matter.
template <typename Response, typename Result>
auto ConvertingFromAny(Callback<Result> done) {
  return [convert = Converting<Response, Result>(std::move(done))](
             absl::StatusOr<Response> response, size_t) { convert(std::move(response)); };
}

}  // namespace

GrpcConnection::GrpcConnection(const ClientOptions& options, std::shared_ptr<Timer> timer,
                               RandomSource random)
    : transport_(std::make_shared<Transport>(options, std::move(timer), std::move(random))) {}

template <typename Request, typename Response>
void GrpcConnection::CallOwner(const std::string& worker, const CallOptions& options,
                               Request request, UnaryMethod<Request, Response> method,
                               std::function<void(absl::StatusOr<Response>)> done) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return done(std::move(status));
  const CallSettings settings = transport_->Settings(options);
  // Shared, as a std::function must be copyable and the message should not be copied.
  auto message = std::make_shared<Request>(std::move(request));
  transport_->FindOwner(
      worker, settings,
      [transport = transport_, settings, message, method = std::move(method),
       done = std::move(done)](absl::StatusOr<size_t> target) {
        if (!target.ok()) return done(std::move(target).status());
        transport->Unary<Request, Response>(
            settings, Transport::OneTarget(*target), std::move(*message), method,
            [done](absl::StatusOr<Response> response, size_t) { done(std::move(response)); });
      });
}

void GrpcConnection::Attend(const AttendRequest& request, const CallOptions& options,
                            Callback<AttendResult> done) {
  v1::AttendRequest message;
  absl::Status status = CheckOptions(options);
  status.Update(ToProto(request, &message));
  if (!status.ok()) return done(std::move(status));
  transport_->Unary<v1::AttendRequest, v1::AttendResponse>(
      transport_->Settings(options), transport_->AnyTarget(), std::move(message),
      [](Endpoint& endpoint, auto... arguments) {
        endpoint.attention->async()->Attend(std::move(arguments)...);
      },
      ConvertingFromAny<v1::AttendResponse>(std::move(done)));
}

void GrpcConnection::AttendWithWeights(const AttendRequest& request, const CallOptions& options,
                                       WeightsCallback on_block, Callback<AttendResult> done) {
  v1::AttendRequest message;
  absl::Status status = CheckOptions(options);
  status.Update(ToProto(request, &message));
  if (!status.ok()) return done(std::move(status));
  message.mutable_returns()->set_weights(true);
  StartWeightsCall(transport_, transport_->Settings(options), std::move(message),
                   std::move(on_block), std::move(done));
}

void GrpcConnection::CreateSession(const SessionOptions& request, const CallOptions& options,
                                   Callback<SessionInfo> done) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return done(std::move(status));
  v1::CreateSessionRequest message;
  ToProto(request, &message);
  transport_->Unary<v1::CreateSessionRequest, v1::CreateSessionResponse>(
      transport_->Settings(options), transport_->AnyTarget(), std::move(message),
      [](Endpoint& endpoint, auto... arguments) {
        endpoint.session->async()->CreateSession(std::move(arguments)...);
      },
      [transport = transport_, done = std::move(done)](
          absl::StatusOr<v1::CreateSessionResponse> response, size_t target) {
        if (!response.ok()) return done(std::move(response).status());
        transport->targets().Learn(response->session().handle().worker(), target);
        done(FromProto(std::move(*response->mutable_session())));
      });
}

void GrpcConnection::GetSession(const SessionHandle& handle, const CallOptions& options,
                                Callback<SessionInfo> done) {
  v1::GetSessionRequest message;
  ToProto(handle, message.mutable_handle());
  CallOwner<v1::GetSessionRequest, v1::GetSessionResponse>(
      handle.worker, options, std::move(message),
      [](Endpoint& endpoint, auto... arguments) {
        endpoint.session->async()->GetSession(std::move(arguments)...);
      },
      [done = std::move(done)](absl::StatusOr<v1::GetSessionResponse> response) {
        if (!response.ok()) return done(std::move(response).status());
        done(FromProto(std::move(*response->mutable_session())));
      });
}

void GrpcConnection::ListSessions(const ListSessionsRequest& request, const CallOptions& options,
                                  Callback<ListSessionsResult> done) {
  const size_t num_targets = transport_->targets().size();
  absl::StatusOr<PageToken> token = ParsePageToken(request.page_token, num_targets);
  absl::Status status = CheckOptions(options);
  status.Update(token.status());
  if (!status.ok()) return done(std::move(status));
  v1::ListSessionsRequest message;
  message.set_page_size(request.page_size);
  message.set_page_token(token->token);
  transport_->Unary<v1::ListSessionsRequest, v1::ListSessionsResponse>(
      transport_->Settings(options), Transport::OneTarget(token->target), std::move(message),
      [](Endpoint& endpoint, auto... arguments) {
        endpoint.session->async()->ListSessions(std::move(arguments)...);
      },
      [num_targets, done = std::move(done)](absl::StatusOr<v1::ListSessionsResponse> response,
                                            size_t target) {
        if (!response.ok()) return done(std::move(response).status());
        absl::StatusOr<ListSessionsResult> result = FromProto(*std::move(response));
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
  CallOwner<v1::DeleteSessionRequest, v1::DeleteSessionResponse>(
      handle.worker, options, std::move(message),
      [](Endpoint& endpoint, auto... arguments) {
        endpoint.session->async()->DeleteSession(std::move(arguments)...);
      },
      [done = std::move(done)](absl::StatusOr<v1::DeleteSessionResponse> response) {
        done(std::move(response).status());
      });
}

void GrpcConnection::Step(const StepRequest& request, const CallOptions& options,
                          Callback<StepResult> done) {
  v1::StepRequest message;
  if (absl::Status status = ToProto(request, &message); !status.ok()) return done(status);
  const std::string worker = request.steps.empty() ? "" : request.steps[0].handle.worker;
  CallOwner<v1::StepRequest, v1::StepResponse>(
      worker, options, std::move(message),
      [](Endpoint& endpoint, auto... arguments) {
        endpoint.session->async()->Step(std::move(arguments)...);
      },
      Converting<v1::StepResponse>(std::move(done)));
}

void GrpcConnection::GetServerInfo(const CallOptions& options, Callback<ServerInfo> done) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return done(std::move(status));
  transport_->Unary<v1::GetServerInfoRequest, v1::GetServerInfoResponse>(
      transport_->Settings(options), transport_->AnyTarget(), {},
      [](Endpoint& endpoint, auto... arguments) {
        endpoint.server->async()->GetServerInfo(std::move(arguments)...);
      },
      ConvertingFromAny<v1::GetServerInfoResponse>(std::move(done)));
}

void GrpcConnection::Explain(const ExplainRequest& request, const CallOptions& options,
                             Callback<ExplainResult> done) {
  v1::ExplainRequest message;
  absl::Status status = CheckOptions(options);
  status.Update(ToProto(request, &message));
  if (!status.ok()) return done(std::move(status));
  transport_->Unary<v1::ExplainRequest, v1::ExplainResponse>(
      transport_->Settings(options), transport_->AnyTarget(), std::move(message),
      [](Endpoint& endpoint, auto... arguments) {
        endpoint.server->async()->Explain(std::move(arguments)...);
      },
      ConvertingFromAny<v1::ExplainResponse>(std::move(done)));
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
