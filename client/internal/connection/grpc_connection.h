// The Connection of real servers: converts, routes and retries each call over a Transport. Calls in
// flight hold all that they need, and outlive it.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/client/connection.h"
#include "client/internal/call/answer.h"
#include "client/internal/call/outgoing_request.h"
#include "client/internal/call/transport.h"
#include "client/internal/call/unary_call.h"
#include "client/internal/shared_memory/shared_memory_channels.h"
#include "proto/codec/outgoing_message.h"

namespace attention::client::internal {

// INVALID_ARGUMENT: names the option that is out of its range.
absl::Status CheckOptions(const ClientOptions& options);
absl::Status CheckOptions(const CallOptions& options);

class GrpcConnection final : public Connection {
 public:
  // `options` have passed CheckOptions.
  GrpcConnection(const ClientOptions& options, std::shared_ptr<Timer> timer, RandomSource random);

  void Attend(const AttendRequest& request, const CallOptions& options,
              Callback<AttendResult> done) override;
  void AttendWithWeights(const AttendRequest& request, const CallOptions& options,
                         WeightsCallback on_block, Callback<AttendResult> done) override;
  void CreateSession(const SessionOptions& request, const CallOptions& options,
                     Callback<SessionInfo> done) override;
  void GetSession(const SessionHandle& handle, const CallOptions& options,
                  Callback<SessionInfo> done) override;
  void ListSessions(const ListSessionsRequest& request, const CallOptions& options,
                    Callback<ListSessionsResult> done) override;
  void DeleteSession(const SessionHandle& handle, const CallOptions& options,
                     StatusCallback done) override;
  void ForkSession(const ForkSessionRequest& request, const CallOptions& options,
                   Callback<std::vector<SessionInfo>> done) override;
  void TruncateSession(const TruncateSessionRequest& request, const CallOptions& options,
                       Callback<SessionInfo> done) override;
  void KeepTokens(const KeepTokensRequest& request, const CallOptions& options,
                  Callback<SessionInfo> done) override;
  void GetKeysValues(const GetKeysValuesRequest& request, const CallOptions& options,
                     Callback<KeysValues> done) override;
  absl::Status ExportSession(const ExportSessionRequest& request, const CallOptions& options,
                             std::ostream& archive) override;
  absl::StatusOr<SessionInfo> ImportSession(const ImportSessionRequest& request,
                                            const CallOptions& options,
                                            std::istream& archive) override;
  void AttachSession(const SessionHandle& handle, const CallOptions& options,
                     Callback<SessionInfo> done) override;
  void ReorderSessions(const ReorderSessionsRequest& request, const CallOptions& options,
                       Callback<std::vector<SessionInfo>> done) override;
  void Step(const StepRequest& request, const CallOptions& options,
            Callback<StepResult> done) override;
  void CreateLayer(const LayerOptions& request, const CallOptions& options,
                   Callback<LayerInfo> done) override;
  void GetLayer(const std::string& layer_id, const CallOptions& options,
                Callback<LayerInfo> done) override;
  void ListLayers(const ListLayersRequest& request, const CallOptions& options,
                  Callback<ListLayersResult> done) override;
  void DeleteLayer(const std::string& layer_id, const CallOptions& options,
                   StatusCallback done) override;
  void ConvertLayer(const ConvertLayerRequest& request, const CallOptions& options,
                    Callback<LayerInfo> done) override;
  void Forward(const ForwardRequest& request, const CallOptions& options,
               Callback<ForwardResult> done) override;
  void GetServerInfo(const CallOptions& options, Callback<ServerInfo> done) override;
  void Explain(const ExplainRequest& request, const CallOptions& options,
               Callback<ExplainResult> done) override;
  absl::StatusOr<std::unique_ptr<StepStream>> OpenStepStream(
      const StepStreamOptions& options) override;
  absl::Status WaitUntilReady(absl::Time deadline) override;
  absl::StatusOr<SharedTensor> AllocateShared(DType dtype, Shape shape) override;
  SharedMemoryUsage shared_memory_usage() const override;

 private:
  using Prepared = absl::StatusOr<std::shared_ptr<OutgoingRequest>>;

  absl::StatusOr<std::size_t> TargetOf(const StepStreamOptions& options) const;
  // Calls any target, or a session's owner. `request` is the message, or what is wrong with it.
  void CallAny(const CallOptions& options, const char* method,
               absl::StatusOr<codec::OutgoingMessage> request, AnswerCallback done);
  void CallOwner(const std::string& server_name, const CallOptions& options, const char* method,
                 absl::StatusOr<codec::OutgoingMessage> request, AnswerCallback done);
  // The bytes to send, or what is wrong with the options or the request.
  Prepared Prepare(const CallOptions& options,
                   absl::StatusOr<codec::OutgoingMessage> request) const;

  const std::shared_ptr<Transport> transport_;
  const std::shared_ptr<SharedMemoryChannels> shared_memory_;  // null where the options turn it off
};

}  // namespace attention::client::internal
