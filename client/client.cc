#include "attention/client/client.h"

#include <random>
#include <utility>

#include "absl/time/clock.h"
#include "client/internal/base/future.h"
#include "client/internal/call/grpc_timer.h"
#include "client/internal/connection/grpc_connection.h"

namespace attention::client {
namespace {

double UniformRandom() {
  thread_local std::minstd_rand generator(std::random_device{}());
  return std::generate_canonical<double, 32>(generator);
}

using internal::FutureOf;
using internal::Waiting;

}  // namespace

absl::StatusOr<std::shared_ptr<Client>> Client::Connect(const ClientOptions& options) {
  if (absl::Status status = internal::CheckOptions(options); !status.ok()) return status;
  return std::make_shared<Client>(std::make_shared<internal::GrpcConnection>(
      options, std::make_shared<internal::GrpcTimer>(), UniformRandom));
}

absl::Status Client::WaitUntilReady(absl::Duration timeout) {
  return connection_->WaitUntilReady(absl::Now() + timeout);
}

absl::StatusOr<SharedTensor> Client::AllocateShared(DType dtype, Shape shape) {
  return connection_->AllocateShared(dtype, std::move(shape));
}

SharedMemoryUsage Client::shared_memory_usage() const { return connection_->shared_memory_usage(); }

absl::StatusOr<AttendResult> Client::Attend(const AttendRequest& request,
                                            const CallOptions& options) {
  return AttendFuture(request, Waiting(options)).get();
}

Future<AttendResult> Client::AttendFuture(const AttendRequest& request,
                                          const CallOptions& options) {
  return FutureOf<absl::StatusOr<AttendResult>>(
      [&](auto done) { AttendAsync(request, options, std::move(done)); });
}

void Client::AttendAsync(const AttendRequest& request, const CallOptions& options,
                         Callback<AttendResult> done) {
  connection_->Attend(request, options, std::move(done));
}

absl::StatusOr<AttendResult> Client::AttendWithWeights(const AttendRequest& request,
                                                       WeightsCallback on_block,
                                                       const CallOptions& options) {
  return AttendWithWeightsFuture(request, std::move(on_block), options).get();
}

Future<AttendResult> Client::AttendWithWeightsFuture(const AttendRequest& request,
                                                     WeightsCallback on_block,
                                                     const CallOptions& options) {
  return FutureOf<absl::StatusOr<AttendResult>>([&](auto done) {
    AttendWithWeightsAsync(request, std::move(on_block), options, std::move(done));
  });
}

void Client::AttendWithWeightsAsync(const AttendRequest& request, WeightsCallback on_block,
                                    const CallOptions& options, Callback<AttendResult> done) {
  connection_->AttendWithWeights(request, options, std::move(on_block), std::move(done));
}

absl::StatusOr<Session> Client::CreateSession(const SessionOptions& request,
                                              const CallOptions& options) {
  return CreateSessionFuture(request, Waiting(options)).get();
}

Future<Session> Client::CreateSessionFuture(const SessionOptions& request,
                                            const CallOptions& options) {
  return FutureOf<absl::StatusOr<Session>>(
      [&](auto done) { CreateSessionAsync(request, options, std::move(done)); });
}

void Client::CreateSessionAsync(const SessionOptions& request, const CallOptions& options,
                                Callback<Session> done) {
  connection_->CreateSession(
      request, options,
      [connection = connection_, done = std::move(done)](absl::StatusOr<SessionInfo> info) {
        if (!info.ok()) return done(std::move(info).status());
        done(Session(connection, *std::move(info)));
      });
}

Session Client::OpenSession(SessionInfo info) const {
  return Session(connection_, std::move(info));
}

absl::StatusOr<Session> Client::AttachSession(const SessionHandle& handle,
                                              const CallOptions& options) {
  return AttachSessionFuture(handle, Waiting(options)).get();
}

Future<Session> Client::AttachSessionFuture(const SessionHandle& handle,
                                            const CallOptions& options) {
  return FutureOf<absl::StatusOr<Session>>(
      [&](auto done) { AttachSessionAsync(handle, options, std::move(done)); });
}

void Client::AttachSessionAsync(const SessionHandle& handle, const CallOptions& options,
                                Callback<Session> done) {
  connection_->AttachSession(
      handle, options,
      [connection = connection_, done = std::move(done)](absl::StatusOr<SessionInfo> info) {
        if (!info.ok()) return done(std::move(info).status());
        done(Session(connection, *std::move(info)));
      });
}

absl::StatusOr<SessionInfo> Client::GetSession(const SessionHandle& handle,
                                               const CallOptions& options) {
  return GetSessionFuture(handle, Waiting(options)).get();
}

Future<SessionInfo> Client::GetSessionFuture(const SessionHandle& handle,
                                             const CallOptions& options) {
  return FutureOf<absl::StatusOr<SessionInfo>>(
      [&](auto done) { GetSessionAsync(handle, options, std::move(done)); });
}

void Client::GetSessionAsync(const SessionHandle& handle, const CallOptions& options,
                             Callback<SessionInfo> done) {
  connection_->GetSession(handle, options, std::move(done));
}

absl::StatusOr<ListSessionsResult> Client::ListSessions(const ListSessionsRequest& request,
                                                        const CallOptions& options) {
  return ListSessionsFuture(request, Waiting(options)).get();
}

Future<ListSessionsResult> Client::ListSessionsFuture(const ListSessionsRequest& request,
                                                      const CallOptions& options) {
  return FutureOf<absl::StatusOr<ListSessionsResult>>(
      [&](auto done) { ListSessionsAsync(request, options, std::move(done)); });
}

void Client::ListSessionsAsync(const ListSessionsRequest& request, const CallOptions& options,
                               Callback<ListSessionsResult> done) {
  connection_->ListSessions(request, options, std::move(done));
}

absl::StatusOr<std::vector<Session>> Client::ForkSession(const ForkSessionRequest& request,
                                                         const CallOptions& options) {
  return ForkSessionFuture(request, Waiting(options)).get();
}

Future<std::vector<Session>> Client::ForkSessionFuture(const ForkSessionRequest& request,
                                                       const CallOptions& options) {
  return FutureOf<absl::StatusOr<std::vector<Session>>>(
      [&](auto done) { ForkSessionAsync(request, options, std::move(done)); });
}

void Client::ForkSessionAsync(const ForkSessionRequest& request, const CallOptions& options,
                              Callback<std::vector<Session>> done) {
  connection_->ForkSession(request, options,
                           [connection = connection_, done = std::move(done)](
                               absl::StatusOr<std::vector<SessionInfo>> infos) {
                             if (!infos.ok()) return done(std::move(infos).status());
                             std::vector<Session> sessions;
                             sessions.reserve(infos->size());
                             for (SessionInfo& info : *infos)
                               sessions.emplace_back(connection, std::move(info));
                             done(std::move(sessions));
                           });
}

absl::StatusOr<SessionInfo> Client::TruncateSession(const TruncateSessionRequest& request,
                                                    const CallOptions& options) {
  return TruncateSessionFuture(request, Waiting(options)).get();
}

Future<SessionInfo> Client::TruncateSessionFuture(const TruncateSessionRequest& request,
                                                  const CallOptions& options) {
  return FutureOf<absl::StatusOr<SessionInfo>>(
      [&](auto done) { TruncateSessionAsync(request, options, std::move(done)); });
}

void Client::TruncateSessionAsync(const TruncateSessionRequest& request, const CallOptions& options,
                                  Callback<SessionInfo> done) {
  connection_->TruncateSession(request, options, std::move(done));
}

absl::StatusOr<SessionInfo> Client::KeepTokens(const KeepTokensRequest& request,
                                               const CallOptions& options) {
  return KeepTokensFuture(request, Waiting(options)).get();
}

Future<SessionInfo> Client::KeepTokensFuture(const KeepTokensRequest& request,
                                             const CallOptions& options) {
  return FutureOf<absl::StatusOr<SessionInfo>>(
      [&](auto done) { KeepTokensAsync(request, options, std::move(done)); });
}

void Client::KeepTokensAsync(const KeepTokensRequest& request, const CallOptions& options,
                             Callback<SessionInfo> done) {
  connection_->KeepTokens(request, options, std::move(done));
}

absl::StatusOr<KeysValues> Client::GetKeysValues(const GetKeysValuesRequest& request,
                                                 const CallOptions& options) {
  return GetKeysValuesFuture(request, Waiting(options)).get();
}

Future<KeysValues> Client::GetKeysValuesFuture(const GetKeysValuesRequest& request,
                                               const CallOptions& options) {
  return FutureOf<absl::StatusOr<KeysValues>>(
      [&](auto done) { GetKeysValuesAsync(request, options, std::move(done)); });
}

void Client::GetKeysValuesAsync(const GetKeysValuesRequest& request, const CallOptions& options,
                                Callback<KeysValues> done) {
  connection_->GetKeysValues(request, options, std::move(done));
}

absl::Status Client::ExportSession(const ExportSessionRequest& request, std::ostream& archive,
                                   const CallOptions& options) {
  return connection_->ExportSession(request, options, archive);
}

absl::StatusOr<Session> Client::ImportSession(const ImportSessionRequest& request,
                                              std::istream& archive, const CallOptions& options) {
  absl::StatusOr<SessionInfo> info = connection_->ImportSession(request, options, archive);
  if (!info.ok()) return std::move(info).status();
  return Session(connection_, *std::move(info));
}

absl::StatusOr<std::vector<SessionInfo>> Client::ReorderSessions(
    const ReorderSessionsRequest& request, const CallOptions& options) {
  return ReorderSessionsFuture(request, Waiting(options)).get();
}

Future<std::vector<SessionInfo>> Client::ReorderSessionsFuture(
    const ReorderSessionsRequest& request, const CallOptions& options) {
  return FutureOf<absl::StatusOr<std::vector<SessionInfo>>>(
      [&](auto done) { ReorderSessionsAsync(request, options, std::move(done)); });
}

void Client::ReorderSessionsAsync(const ReorderSessionsRequest& request, const CallOptions& options,
                                  Callback<std::vector<SessionInfo>> done) {
  connection_->ReorderSessions(request, options, std::move(done));
}

absl::Status Client::DeleteSession(const SessionHandle& handle, const CallOptions& options) {
  return DeleteSessionFuture(handle, Waiting(options)).get();
}

std::future<absl::Status> Client::DeleteSessionFuture(const SessionHandle& handle,
                                                      const CallOptions& options) {
  return FutureOf<absl::Status>(
      [&](auto done) { DeleteSessionAsync(handle, options, std::move(done)); });
}

void Client::DeleteSessionAsync(const SessionHandle& handle, const CallOptions& options,
                                StatusCallback done) {
  connection_->DeleteSession(handle, options, std::move(done));
}

absl::StatusOr<StepResult> Client::Step(const StepRequest& request, const CallOptions& options) {
  return StepFuture(request, Waiting(options)).get();
}

Future<StepResult> Client::StepFuture(const StepRequest& request, const CallOptions& options) {
  return FutureOf<absl::StatusOr<StepResult>>(
      [&](auto done) { StepAsync(request, options, std::move(done)); });
}

void Client::StepAsync(const StepRequest& request, const CallOptions& options,
                       Callback<StepResult> done) {
  connection_->Step(request, options, std::move(done));
}

absl::StatusOr<std::unique_ptr<StepStream>> Client::OpenStepStream(
    const StepStreamOptions& options) {
  return connection_->OpenStepStream(options);
}

absl::StatusOr<ServerInfo> Client::GetServerInfo(const CallOptions& options) {
  return GetServerInfoFuture(Waiting(options)).get();
}

Future<ServerInfo> Client::GetServerInfoFuture(const CallOptions& options) {
  return FutureOf<absl::StatusOr<ServerInfo>>(
      [&](auto done) { GetServerInfoAsync(options, std::move(done)); });
}

void Client::GetServerInfoAsync(const CallOptions& options, Callback<ServerInfo> done) {
  connection_->GetServerInfo(options, std::move(done));
}

absl::StatusOr<ExplainResult> Client::Explain(const ExplainRequest& request,
                                              const CallOptions& options) {
  return ExplainFuture(request, Waiting(options)).get();
}

Future<ExplainResult> Client::ExplainFuture(const ExplainRequest& request,
                                            const CallOptions& options) {
  return FutureOf<absl::StatusOr<ExplainResult>>(
      [&](auto done) { ExplainAsync(request, options, std::move(done)); });
}

void Client::ExplainAsync(const ExplainRequest& request, const CallOptions& options,
                          Callback<ExplainResult> done) {
  connection_->Explain(request, options, std::move(done));
}

}  // namespace attention::client
