// A session: per-layer key/value caches in the server, and the position of each layer on this side,
// so that steps are safe to retry. Made by Client::CreateSession, AttachSession or
// OpenSession.
//
//   auto session = client->CreateSession({.geometry = {.num_layers = 2, ...}});
//   auto result = session->Step({.layer = 0, .q = q, .k = k, .v = v, .config = {.is_causal =
//   true}});
//
// Movable; thread-compatible: one thread at a time. Destroying a Session neither blocks nor deletes
// anything in the server, where the session lives on until Delete() or until its TTL has passed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/connection.h"
#include "attention/client/session_types.h"

namespace attention::client {

// A step of one layer, without what the Session fills in (handle and expected_position). Fields as
// in SessionStep.
struct LayerStep {
  int layer = 0;
  // [q_len, num_q_heads, head_dim_qk]. Absent: append only.
  TensorView q = {};
  // [num_tokens, num_kv_heads, head_dim_qk] and [num_tokens, num_kv_heads, head_dim_v]. Absent:
  // attend only. k alone where values are prefixes of their keys.
  TensorView k = {};
  TensorView v = {};
  AttentionConfig config = {};
  ReturnOptions returns = {};
  std::optional<std::int64_t> first_query_position = {};
  TensorView bias = {};
  TensorView mask = {};
  std::int64_t kv_begin = 0;
  std::optional<std::int64_t> kv_end = {};
  std::vector<int> parents = {};
};

struct LayerStepResult : StepAnswer {
  Timing timing = {};
};

class Session {
 public:
  // Positions start at info.layer_lengths (0 where it has no entry).
  Session(std::shared_ptr<Connection> connection, SessionInfo info);
  Session(Session&&) = default;
  Session& operator=(Session&&) = default;

  // As of creation, attachment or the last Refresh.
  const SessionInfo& info() const { return info_; }
  const SessionHandle& handle() const { return info_.handle; }
  // Tokens of `layer` that the server has acknowledged to this object. `layer` must be in range.
  std::int64_t position(int layer) const { return positions_.at(static_cast<std::size_t>(layer)); }

  // Appends k and v (if given) to the layer and attends with q (if given); on success the layer's
  // position advances by the appended tokens. Without k and v the step attends over the first
  // position(layer) tokens.
  //
  // Retries are safe: the server knows a step it has applied by its expected position. After
  // UNAVAILABLE, DEADLINE_EXCEEDED or CANCELLED the server may or may not have applied it: repeat
  // the step with the same rows, or Refresh().
  //
  // INVALID_ARGUMENT: `layer` out of range, k without v, neither k and v nor q, or what the server
  // refuses; FAILED_PRECONDITION with reason kPositionMismatch (ActualPosition() tells the length;
  // where other rows stand, Truncate takes them back), kWindowDropped (LayerShape), kFenced or
  // kSessionMoved; NOT_FOUND with reason kSessionNotFound, kSessionExpired or kSessionLost;
  // RESOURCE_EXHAUSTED with reason kKvExhausted, kQuotaExceeded or kQueueFull.
  absl::StatusOr<LayerStepResult> Step(const LayerStep& step, const CallOptions& options = {});
  // The same for the common case.
  absl::StatusOr<LayerStepResult> Step(int layer, TensorView q, TensorView k, TensorView v,
                                       const AttentionConfig& config = {},
                                       const CallOptions& options = {});

  // For steps that go through Client::Step or a StepStream, alone or with other sessions' steps:
  // MakeStep fills in handle and expected position; Accept takes the result of a step so made, and
  // advances the position if it succeeded. To pipeline several appends of one layer, Accept is too
  // late: call Advance with the step when it is sent, and Refresh after a failure.
  absl::StatusOr<SessionStep> MakeStep(const LayerStep& step) const;
  // Returns the step's own status.
  absl::Status Accept(const SessionStep& step, const SessionStepResult& result);
  void Advance(const SessionStep& step);

  // Copies that hold the first tokens of this session (ForkSessionRequest::length; default: the
  // committed length) and share its memory. The request's handle is this session's. Fails as
  // Client::ForkSession.
  absl::StatusOr<std::vector<Session>> Fork(ForkSessionRequest request = {},
                                            const CallOptions& options = {});

  // Takes tokens back, rejected drafts for instance: no layer is longer afterwards, and the next
  // steps follow from there. Fails as Client::TruncateSession.
  absl::Status Truncate(std::int64_t length, const CallOptions& options = {});
  // The same, but for drafts that were accepted: the tokens `length` + accepted[i] stay and move
  // together, in all layers.
  absl::Status AcceptDrafts(std::int64_t length, std::vector<int> accepted,
                            const CallOptions& options = {});

  // Lets go of tokens; positions stay as they are. Fails as Client::KeepTokens.
  absl::Status Keep(std::vector<KeptTokens> keep, const CallOptions& options = {});
  // Tokens that the layer holds, as far as this object knows: position(layer) less those let go.
  std::int64_t num_held(int layer) const;
  // Rows of a layer, read back. Fails as Client::GetKeysValues.
  absl::StatusOr<KeysValues> GetKeysValues(int layer, std::int64_t begin = 0,
                                           std::optional<std::int64_t> end = {},
                                           const CallOptions& options = {});

  // Lets each session hold what sessions[sources[i]] has held: the beams that go on. All of one
  // session's forks, or of one device otherwise; all are changed, or none.
  static absl::Status Reorder(std::span<Session> sessions, std::vector<int> sources,
                              const CallOptions& options = {});

  // Reads info and positions anew from the server.
  absl::Status Refresh(const CallOptions& options = {});

  // Frees the session in the server. OK also when it was gone already.
  absl::Status Delete(const CallOptions& options = {});

 private:
  void Set(SessionInfo info);

  std::shared_ptr<Connection> connection_;
  SessionInfo info_;
  std::vector<std::int64_t> positions_;  // [num_layers]
};

}  // namespace attention::client
