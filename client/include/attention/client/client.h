// The entry to the SDK.
//
//   auto client = attention::client::Client::Connect({.targets = {"127.0.0.1:7070"}});
//   if (!client.ok()) ...
//   auto result = (*client)->Attend({.q = q, .k = k, .v = v, .config = {.is_causal = true}});
//
// A Client is thin and thread-safe; one serves a whole program. Each call comes in three forms:
// plain (blocks), Future, and Async (calls `done` exactly once). In all three the request's tensors
// need to live only until the function returns. Calls in flight do not need the Client: it may be
// destroyed, which does not block, and they complete as they would have. gRPC's callback
// threads, once started, stay until the process ends.
//
// `done` runs on the library's threads, without locks held; it must not block, so neither plain
// forms nor future.get() belong in it.
//
// Errors, beside those named at each method (errors.h reads the reasons):
//   INVALID_ARGUMENT    the message names the field, with actual and expected value
//   RESOURCE_EXHAUSTED  reason kQueueFull, after the retries; or the message is too large
//   DEADLINE_EXCEEDED, CANCELLED
//   UNAVAILABLE         no server reached, or reason kDraining, after the retries
#pragma once

#include <future>
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
#include "attention/client/connection.h"
#include "attention/client/layer.h"
#include "attention/client/layer_types.h"
#include "attention/client/options.h"
#include "attention/client/server_info.h"
#include "attention/client/session.h"
#include "attention/client/session_types.h"
#include "attention/client/shared_tensor.h"
#include "attention/client/step_stream.h"

namespace attention::client {

template <typename Result>
using Future = std::future<absl::StatusOr<Result>>;

class Client {
 public:
  // Checks the options and returns at once; connections are made in the background
  // (WaitUntilReady). INVALID_ARGUMENT: an option is out of its range.
  static absl::StatusOr<std::shared_ptr<Client>> Connect(const ClientOptions& options);
  // On a connection of one's own: a mock, or a decorator. Not null.
  explicit Client(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}

  // Blocks until every target is connected; DEADLINE_EXCEEDED names one that is not, and why: its
  // name cannot be resolved, it refuses connections, it speaks TLS or HTTP/1, its certificate is
  // not to be trusted, it wants one of the client's. To find that out takes no longer than was
  // waited, and three seconds at most. Then calls each target once: UNAUTHENTICATED and
  // PERMISSION_DENIED name one that refuses the client's credentials. Then, and no longer than
  // that, until it is known which of them share memory, so that the first large request can make
  // use of it.
  absl::Status WaitUntilReady(absl::Duration timeout);

  // Memory for a tensor that is then sent without being copied to the server on this host that has
  // made it (SharedMemoryOptions); to others, and to that one once it has restarted, it is copied
  // as any tensor. Where no server offers memory, or beyond shared_memory.max_bytes, it is ordinary
  // memory. May wait for the server, two seconds at most. INVALID_ARGUMENT: the shape is negative
  // or too large; RESOURCE_EXHAUSTED: out of memory.
  absl::StatusOr<SharedTensor> AllocateShared(DType dtype, Shape shape);
  // How much is shared now.
  SharedMemoryUsage shared_memory_usage() const;

  // Attention over tensors that travel with the request.
  absl::StatusOr<AttendResult> Attend(const AttendRequest& request,
                                      const CallOptions& options = {});
  Future<AttendResult> AttendFuture(const AttendRequest& request, const CallOptions& options = {});
  void AttendAsync(const AttendRequest& request, const CallOptions& options,
                   Callback<AttendResult> done);

  // The same with the attention weights, which come in blocks of rows while the call runs: one call
  // of `on_block` at a time, in order of sequence and row, all before the result. `on_block` may
  // take its time (the server waits), but must not call plain forms. Not retried once something
  // came.
  absl::StatusOr<AttendResult> AttendWithWeights(const AttendRequest& request,
                                                 WeightsCallback on_block,
                                                 const CallOptions& options = {});
  Future<AttendResult> AttendWithWeightsFuture(const AttendRequest& request,
                                               WeightsCallback on_block,
                                               const CallOptions& options = {});
  void AttendWithWeightsAsync(const AttendRequest& request, WeightsCallback on_block,
                              const CallOptions& options, Callback<AttendResult> done);

  // Creates an empty session, or finds it by its name. RESOURCE_EXHAUSTED: reason kQuotaExceeded or
  // kKvExhausted. Retries make one session on a server. With several targets a retry goes to the
  // next; a session that the one before made without being able to say so ends after its TTL.
  absl::StatusOr<Session> CreateSession(const SessionOptions& request,
                                        const CallOptions& options = {});
  Future<Session> CreateSessionFuture(const SessionOptions& request,
                                      const CallOptions& options = {});
  void CreateSessionAsync(const SessionOptions& request, const CallOptions& options,
                          Callback<Session> done);
  // Drives an existing session, from what GetSession or ListSessions gave. No call is made.
  Session OpenSession(SessionInfo info) const;
  // Makes this program the session's writer: from now on the handles of the one before, dead or
  // only slow, are refused with reason kFenced, and the lengths in info() are final. Fails as
  // GetSession. Safe to retry.
  absl::StatusOr<Session> AttachSession(const SessionHandle& handle,
                                        const CallOptions& options = {});
  Future<Session> AttachSessionFuture(const SessionHandle& handle, const CallOptions& options = {});
  void AttachSessionAsync(const SessionHandle& handle, const CallOptions& options,
                          Callback<Session> done);

  // NOT_FOUND: reason kSessionNotFound, kSessionExpired or kSessionLost. FAILED_PRECONDITION:
  // reason kSessionMoved.
  absl::StatusOr<SessionInfo> GetSession(const SessionHandle& handle,
                                         const CallOptions& options = {});
  Future<SessionInfo> GetSessionFuture(const SessionHandle& handle,
                                       const CallOptions& options = {});
  void GetSessionAsync(const SessionHandle& handle, const CallOptions& options,
                       Callback<SessionInfo> done);

  // A page of the tenant's sessions.
  absl::StatusOr<ListSessionsResult> ListSessions(const ListSessionsRequest& request = {},
                                                  const CallOptions& options = {});
  Future<ListSessionsResult> ListSessionsFuture(const ListSessionsRequest& request = {},
                                                const CallOptions& options = {});
  void ListSessionsAsync(const ListSessionsRequest& request, const CallOptions& options,
                         Callback<ListSessionsResult> done);

  // OK also when the session was gone already.
  absl::Status DeleteSession(const SessionHandle& handle, const CallOptions& options = {});
  std::future<absl::Status> DeleteSessionFuture(const SessionHandle& handle,
                                                const CallOptions& options = {});
  void DeleteSessionAsync(const SessionHandle& handle, const CallOptions& options,
                          StatusCallback done);

  // Sessions that hold the first tokens of another one and share its memory. FAILED_PRECONDITION:
  // reason kPositionMismatch, the length is more than the committed one (ActualPosition()).
  // RESOURCE_EXHAUSTED as CreateSession. Session::Fork forks the session of an object.
  absl::StatusOr<std::vector<Session>> ForkSession(const ForkSessionRequest& request,
                                                   const CallOptions& options = {});
  Future<std::vector<Session>> ForkSessionFuture(const ForkSessionRequest& request,
                                                 const CallOptions& options = {});
  void ForkSessionAsync(const ForkSessionRequest& request, const CallOptions& options,
                        Callback<std::vector<Session>> done);

  // Takes tokens back: no layer is longer afterwards, but for drafts that were accepted. Fails as
  // ForkSession, and with reason kTokensDropped.
  absl::StatusOr<SessionInfo> TruncateSession(const TruncateSessionRequest& request,
                                              const CallOptions& options = {});
  Future<SessionInfo> TruncateSessionFuture(const TruncateSessionRequest& request,
                                            const CallOptions& options = {});
  void TruncateSessionAsync(const TruncateSessionRequest& request, const CallOptions& options,
                            Callback<SessionInfo> done);

  // Lets go of tokens; reads rows back. FAILED_PRECONDITION: reason kPositionMismatch.
  absl::StatusOr<SessionInfo> KeepTokens(const KeepTokensRequest& request,
                                         const CallOptions& options = {});
  Future<SessionInfo> KeepTokensFuture(const KeepTokensRequest& request,
                                       const CallOptions& options = {});
  void KeepTokensAsync(const KeepTokensRequest& request, const CallOptions& options,
                       Callback<SessionInfo> done);

  absl::StatusOr<KeysValues> GetKeysValues(const GetKeysValuesRequest& request,
                                           const CallOptions& options = {});
  Future<KeysValues> GetKeysValuesFuture(const GetKeysValuesRequest& request,
                                         const CallOptions& options = {});
  void GetKeysValuesAsync(const GetKeysValuesRequest& request, const CallOptions& options,
                          Callback<KeysValues> done);

  // Writes a session to an archive, such as a file, and makes one of it on any server, with the
  // same bits. Both block; an export that breaks off goes on by itself. DATA_LOSS: a damaged
  // archive.
  absl::Status ExportSession(const ExportSessionRequest& request, std::ostream& archive,
                             const CallOptions& options = {});
  absl::StatusOr<Session> ImportSession(const ImportSessionRequest& request, std::istream& archive,
                                        const CallOptions& options = {});

  // Lets each session hold what one of them has held, as beam search does; all of them, or none.
  // The sessions as they are then, in their order.
  absl::StatusOr<std::vector<SessionInfo>> ReorderSessions(const ReorderSessionsRequest& request,
                                                           const CallOptions& options = {});
  Future<std::vector<SessionInfo>> ReorderSessionsFuture(const ReorderSessionsRequest& request,
                                                         const CallOptions& options = {});
  void ReorderSessionsAsync(const ReorderSessionsRequest& request, const CallOptions& options,
                            Callback<std::vector<SessionInfo>> done);

  // Steps of any number of one server's sessions. Each step has its own status in the result;
  // Session::MakeStep and Accept keep the positions.
  absl::StatusOr<StepResult> Step(const StepRequest& request, const CallOptions& options = {});
  Future<StepResult> StepFuture(const StepRequest& request, const CallOptions& options = {});
  void StepAsync(const StepRequest& request, const CallOptions& options, Callback<StepResult> done);
  // The same, pipelined on one stream. May block to find options.server_name among several targets.
  absl::StatusOr<std::unique_ptr<StepStream>> OpenStepStream(const StepStreamOptions& options = {});

  // Uploads a layer; to every target, so that any can compute it. Safe to retry. ALREADY_EXISTS:
  // another layer has the name. RESOURCE_EXHAUSTED: reason kLayerBytesExhausted or kQuotaExceeded.
  absl::StatusOr<Layer> CreateLayer(const LayerOptions& request, const CallOptions& options = {});
  Future<Layer> CreateLayerFuture(const LayerOptions& request, const CallOptions& options = {});
  void CreateLayerAsync(const LayerOptions& request, const CallOptions& options,
                        Callback<Layer> done);

  // Finds an existing layer, one that the server preloads for instance. NOT_FOUND: reason
  // kLayerNotFound.
  absl::StatusOr<Layer> GetLayer(const std::string& layer_id, const CallOptions& options = {});
  Future<Layer> GetLayerFuture(const std::string& layer_id, const CallOptions& options = {});
  void GetLayerAsync(const std::string& layer_id, const CallOptions& options, Callback<Layer> done);

  // A page of the tenant's layers.
  absl::StatusOr<ListLayersResult> ListLayers(const ListLayersRequest& request = {},
                                              const CallOptions& options = {});

  // OK also when the layer was gone already. Calls in flight finish.
  absl::Status DeleteLayer(const std::string& layer_id, const CallOptions& options = {});

  // A layer of fewer KV heads, each the mean of a group's.
  absl::StatusOr<Layer> ConvertLayer(const ConvertLayerRequest& request,
                                     const CallOptions& options = {});
  Future<Layer> ConvertLayerFuture(const ConvertLayerRequest& request,
                                   const CallOptions& options = {});
  void ConvertLayerAsync(const ConvertLayerRequest& request, const CallOptions& options,
                         Callback<Layer> done);

  // A layer's output. All sessions are one server's.
  absl::StatusOr<ForwardResult> Forward(const ForwardRequest& request,
                                        const CallOptions& options = {});
  Future<ForwardResult> ForwardFuture(const ForwardRequest& request,
                                      const CallOptions& options = {});
  void ForwardAsync(const ForwardRequest& request, const CallOptions& options,
                    Callback<ForwardResult> done);

  absl::StatusOr<ServerInfo> GetServerInfo(const CallOptions& options = {});
  Future<ServerInfo> GetServerInfoFuture(const CallOptions& options = {});
  void GetServerInfoAsync(const CallOptions& options, Callback<ServerInfo> done);

  // Tells if a computation is supported, by which kernel, and its arithmetic.
  absl::StatusOr<ExplainResult> Explain(const ExplainRequest& request,
                                        const CallOptions& options = {});
  Future<ExplainResult> ExplainFuture(const ExplainRequest& request,
                                      const CallOptions& options = {});
  void ExplainAsync(const ExplainRequest& request, const CallOptions& options,
                    Callback<ExplainResult> done);

 private:
  std::shared_ptr<Connection> connection_;
};

}  // namespace attention::client
