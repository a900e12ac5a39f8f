// The Connection of real servers: converts, routes and retries each call over a Transport. Holds no
// state of its own, so calls in flight outlive it.
#ifndef ATTENTION_CLIENT_INTERNAL_CONNECTION_GRPC_CONNECTION_H_
#define ATTENTION_CLIENT_INTERNAL_CONNECTION_GRPC_CONNECTION_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "attention/client/connection.h"
#include "client/internal/call/transport.h"

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

  absl::StatusOr<size_t> TargetOf(const StepStreamOptions& options) const;
  // Calls any target; or those of the route.
  void CallAny(const CallSettings& settings, const char* method, Prepared request,
               AnswerCallback done);
  void CallAlong(Route route, const CallSettings& settings, const char* method, Prepared request,
                 AnswerCallback done);
  // Calls a session's owner.
  void CallOwner(const std::string& worker, CallSettings settings, const char* method,
                 Prepared request, AnswerCallback done);
  // The bytes to send, or what is wrong with the options or the request.
  Prepared Prepare(const CallOptions& options,
                   absl::StatusOr<codec::OutgoingMessage> request) const;
  // The same for a request that may go to the target by shared memory, if it is known which that
  // is; `encode` is called with the request and its references.
  template <typename Request, typename Encode>
  Prepared PrepareShared(const CallOptions& options, std::optional<size_t> target,
                         const Request& request, Encode encode) const;

  const std::shared_ptr<Transport> transport_;
};

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_CONNECTION_GRPC_CONNECTION_H_
