// The seam between the SDK's surface and its transport: one method for each RPC, in callback form,
// on plain structs. Client::Connect makes the gRPC one, retries included; mocks/mock_connection.h a
// mock, with which programs test their own use of Client and Session without a server.
//
// Implementations are thread-safe, call each callback exactly once, and have read the request's
// tensors when the method returns. Callbacks may run before the method returns.
#pragma once

#include <functional>
#include <istream>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/client/attention.h"
#include "attention/client/layer_types.h"
#include "attention/client/options.h"
#include "attention/client/server_info.h"
#include "attention/client/session_types.h"
#include "attention/client/shared_tensor.h"
#include "attention/client/step_stream.h"

namespace attention::client {

// Called exactly once with a call's outcome.
template <typename Result>
using Callback = std::function<void(absl::StatusOr<Result>)>;
using StatusCallback = std::function<void(absl::Status)>;
// Called for each block of attention weights, one at a time, in order of sequence and row.
using WeightsCallback = std::function<void(WeightsBlock)>;

class Connection {
 public:
  virtual ~Connection() = default;

  virtual void Attend(const AttendRequest& request, const CallOptions& options,
                      Callback<AttendResult> done) = 0;
  // Every call of `on_block` returns before `done` is called.
  virtual void AttendWithWeights(const AttendRequest& request, const CallOptions& options,
                                 WeightsCallback on_block, Callback<AttendResult> done) = 0;
  virtual void CreateSession(const SessionOptions& request, const CallOptions& options,
                             Callback<SessionInfo> done) = 0;
  virtual void GetSession(const SessionHandle& handle, const CallOptions& options,
                          Callback<SessionInfo> done) = 0;
  virtual void ListSessions(const ListSessionsRequest& request, const CallOptions& options,
                            Callback<ListSessionsResult> done) = 0;
  virtual void DeleteSession(const SessionHandle& handle, const CallOptions& options,
                             StatusCallback done) = 0;
  virtual void ForkSession(const ForkSessionRequest& request, const CallOptions& options,
                           Callback<std::vector<SessionInfo>> done) = 0;
  virtual void TruncateSession(const TruncateSessionRequest& request, const CallOptions& options,
                               Callback<SessionInfo> done) = 0;
  virtual void KeepTokens(const KeepTokensRequest& request, const CallOptions& options,
                          Callback<SessionInfo> done) = 0;
  virtual void GetKeysValues(const GetKeysValuesRequest& request, const CallOptions& options,
                             Callback<KeysValues> done) = 0;
  // These two block.
  virtual absl::Status ExportSession(const ExportSessionRequest& request,
                                     const CallOptions& options, std::ostream& archive) = 0;
  virtual absl::StatusOr<SessionInfo> ImportSession(const ImportSessionRequest& request,
                                                    const CallOptions& options,
                                                    std::istream& archive) = 0;
  virtual void AttachSession(const SessionHandle& handle, const CallOptions& options,
                             Callback<SessionInfo> done) = 0;
  virtual void ReorderSessions(const ReorderSessionsRequest& request, const CallOptions& options,
                               Callback<std::vector<SessionInfo>> done) = 0;
  virtual void Step(const StepRequest& request, const CallOptions& options,
                    Callback<StepResult> done) = 0;
  virtual void CreateLayer(const LayerOptions& request, const CallOptions& options,
                           Callback<LayerInfo> done) = 0;
  virtual void GetLayer(const std::string& layer_id, const CallOptions& options,
                        Callback<LayerInfo> done) = 0;
  virtual void ListLayers(const ListLayersRequest& request, const CallOptions& options,
                          Callback<ListLayersResult> done) = 0;
  virtual void DeleteLayer(const std::string& layer_id, const CallOptions& options,
                           StatusCallback done) = 0;
  virtual void ConvertLayer(const ConvertLayerRequest& request, const CallOptions& options,
                            Callback<LayerInfo> done) = 0;
  virtual void Forward(const ForwardRequest& request, const CallOptions& options,
                       Callback<ForwardResult> done) = 0;
  virtual void GetServerInfo(const CallOptions& options, Callback<ServerInfo> done) = 0;
  virtual void Explain(const ExplainRequest& request, const CallOptions& options,
                       Callback<ExplainResult> done) = 0;
  // Looks for options.server_name among several targets if it is not known yet, and blocks for that
  // long.
  virtual absl::StatusOr<std::unique_ptr<StepStream>> OpenStepStream(
      const StepStreamOptions& options) = 0;
  // Blocks until every target is connected and takes the credentials (OK), or one refuses them, or
  // the deadline has passed (DEADLINE_EXCEEDED, naming a target and why).
  virtual absl::Status WaitUntilReady(absl::Time deadline) = 0;
  // Memory for a tensor of the caller's, shared with servers where that is possible. By default it
  // never is.
  virtual absl::StatusOr<SharedTensor> AllocateShared(DType dtype, Shape shape) {
    return SharedTensor::Private(dtype, std::move(shape));
  }
  virtual SharedMemoryUsage shared_memory_usage() const { return {}; }
};

}  // namespace attention::client
