#include "attention/client/session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/base/future.h"

namespace attention::client {
namespace {

// Layers the server did not list are empty.
std::vector<std::int64_t> PositionsOf(const SessionInfo& info) {
  std::vector<std::int64_t> positions = info.layer_lengths;
  positions.resize(static_cast<std::size_t>(std::max(info.geometry.num_layers, 0)), 0);
  return positions;
}

// Tokens that a step appends.
std::int64_t NumTokens(const SessionStep& step) {
  return step.k.is_present() ? step.k.shape[0] : 0;
}

}  // namespace

Session::Session(std::shared_ptr<Connection> connection, SessionInfo info)
    : connection_(std::move(connection)), info_(std::move(info)), positions_(PositionsOf(info_)) {}

absl::StatusOr<SessionStep> Session::MakeStep(const LayerStep& step) const {
  if (step.layer < 0 || static_cast<std::size_t>(step.layer) >= positions_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer: ", step.layer, ", expected 0 to ", positions_.size() - 1));
  }
  if (info_.geometry.layer(step.layer).value_is_key_prefix) {
    if (step.v.is_present()) {
      return absl::InvalidArgumentError("v: given, expected none: values are prefixes of the keys");
    }
  } else if (step.k.is_present() != step.v.is_present()) {
    return absl::InvalidArgumentError("k and v: one without the other, expected both or neither");
  }
  if (!step.k.is_present() && !step.q.is_present()) {
    return absl::InvalidArgumentError("q, k and v: all absent, expected q, or k and v, or all");
  }
  return SessionStep{.handle = info_.handle,
                     .layer = step.layer,
                     .expected_position = position(step.layer),
                     .k = step.k,
                     .v = step.v,
                     .q = step.q,
                     .first_query_position = step.first_query_position,
                     .config = step.config,
                     .bias = step.bias,
                     .mask = step.mask,
                     .kv_begin = step.kv_begin,
                     .kv_end = step.kv_end,
                     .returns = step.returns,
                     .parents = step.parents};
}

void Session::Advance(const SessionStep& step) {
  positions_.at(static_cast<std::size_t>(step.layer)) =
      step.expected_position.value_or(position(step.layer)) + NumTokens(step);
}

absl::Status Session::Accept(const SessionStep& step, const SessionStepResult& result) {
  if (result.status.ok() && NumTokens(step) > 0) Advance(step);
  return result.status;
}

absl::StatusOr<LayerStepResult> Session::Step(const LayerStep& step, const CallOptions& options) {
  absl::StatusOr<SessionStep> made = MakeStep(step);
  if (!made.ok()) return std::move(made).status();
  StepRequest request;
  request.steps.push_back(*std::move(made));
  absl::StatusOr<StepResult> answer =
      internal::FutureOf<absl::StatusOr<StepResult>>([&](auto done) {
        connection_->Step(request, internal::Waiting(options), std::move(done));
      }).get();
  if (!answer.ok()) return std::move(answer).status();
  if (answer->results.size() != 1) {
    return absl::InternalError(
        absl::StrCat("the server answered one step with ", answer->results.size(), " results"));
  }
  SessionStepResult& result = answer->results[0];
  if (absl::Status status = Accept(request.steps[0], result); !status.ok()) return status;
  return LayerStepResult{static_cast<StepAnswer&&>(result), answer->timing};
}

absl::StatusOr<LayerStepResult> Session::Step(int layer, TensorView q, TensorView k, TensorView v,
                                              const AttentionConfig& config,
                                              const CallOptions& options) {
  LayerStep step;
  step.layer = layer;
  step.q = std::move(q);
  step.k = std::move(k);
  step.v = std::move(v);
  step.config = config;
  return Step(step, options);
}

absl::Status Session::Refresh(const CallOptions& options) {
  absl::StatusOr<SessionInfo> info =
      internal::FutureOf<absl::StatusOr<SessionInfo>>([&](auto done) {
        connection_->GetSession(handle(), internal::Waiting(options), std::move(done));
      }).get();
  if (!info.ok()) return std::move(info).status();
  Set(*std::move(info));
  return absl::OkStatus();
}

void Session::Set(SessionInfo info) {
  info_ = std::move(info);
  positions_ = PositionsOf(info_);
}

absl::StatusOr<std::vector<Session>> Session::Fork(ForkSessionRequest request,
                                                   const CallOptions& options) {
  request.handle = handle();
  absl::StatusOr<std::vector<SessionInfo>> infos =
      internal::FutureOf<absl::StatusOr<std::vector<SessionInfo>>>([&](auto done) {
        connection_->ForkSession(request, internal::Waiting(options), std::move(done));
      }).get();
  if (!infos.ok()) return std::move(infos).status();
  std::vector<Session> copies;
  copies.reserve(infos->size());
  for (SessionInfo& info : *infos) copies.emplace_back(connection_, std::move(info));
  return copies;
}

absl::Status Session::Truncate(std::int64_t length, const CallOptions& options) {
  return AcceptDrafts(length, {}, options);
}

std::int64_t Session::num_held(int layer) const {
  const auto index = static_cast<std::size_t>(layer);
  if (info_.layer_tokens.empty()) return position(layer);
  return position(layer) - (info_.layer_lengths.at(index) - info_.layer_tokens.at(index));
}

absl::Status Session::Keep(std::vector<KeptTokens> keep, const CallOptions& options) {
  KeepTokensRequest request{.handle = handle(), .keep = std::move(keep)};
  for (KeptTokens& tokens : request.keep) {
    const int layer = tokens.layer.value_or(0);
    if (layer < 0 || static_cast<std::size_t>(layer) >= positions_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer: ", layer, ", expected 0 to ", positions_.size() - 1));
    }
    if (!tokens.num_tokens.has_value()) tokens.num_tokens = num_held(layer);
  }
  absl::StatusOr<SessionInfo> info =
      internal::FutureOf<absl::StatusOr<SessionInfo>>([&](auto done) {
        connection_->KeepTokens(request, internal::Waiting(options), std::move(done));
      }).get();
  if (!info.ok()) return std::move(info).status();
  Set(*std::move(info));
  return absl::OkStatus();
}

absl::StatusOr<KeysValues> Session::GetKeysValues(int layer, std::int64_t begin,
                                                  std::optional<std::int64_t> end,
                                                  const CallOptions& options) {
  const GetKeysValuesRequest request{handle(), layer, begin, end};
  return internal::FutureOf<absl::StatusOr<KeysValues>>([&](auto done) {
           connection_->GetKeysValues(request, internal::Waiting(options), std::move(done));
         })
      .get();
}

absl::Status Session::AcceptDrafts(std::int64_t length, std::vector<int> accepted,
                                   const CallOptions& options) {
  const TruncateSessionRequest request = {
      .handle = handle(), .length = length, .accepted = std::move(accepted)};
  absl::StatusOr<SessionInfo> info =
      internal::FutureOf<absl::StatusOr<SessionInfo>>([&](auto done) {
        connection_->TruncateSession(request, internal::Waiting(options), std::move(done));
      }).get();
  if (!info.ok()) return std::move(info).status();
  Set(*std::move(info));
  return absl::OkStatus();
}

absl::Status Session::Reorder(std::span<Session> sessions, std::vector<int> sources,
                              const CallOptions& options) {
  if (sessions.empty()) return absl::InvalidArgumentError("sessions: none, expected at least one");
  ReorderSessionsRequest request;
  request.sources = std::move(sources);
  for (const Session& session : sessions) request.handles.push_back(session.handle());
  absl::StatusOr<std::vector<SessionInfo>> infos =
      internal::FutureOf<absl::StatusOr<std::vector<SessionInfo>>>([&](auto done) {
        sessions[0].connection_->ReorderSessions(request, internal::Waiting(options),
                                                 std::move(done));
      }).get();
  if (!infos.ok()) return std::move(infos).status();
  if (infos->size() != sessions.size()) {
    return absl::InternalError(
        absl::StrCat("the server answered ", sessions.size(), " sessions with ", infos->size()));
  }
  for (std::size_t i = 0; i < sessions.size(); ++i) sessions[i].Set(std::move((*infos)[i]));
  return absl::OkStatus();
}

absl::Status Session::Delete(const CallOptions& options) {
  return internal::FutureOf<absl::Status>([&](auto done) {
           connection_->DeleteSession(handle(), internal::Waiting(options), std::move(done));
         })
      .get();
}

}  // namespace attention::client
