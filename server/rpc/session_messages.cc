#include "server/rpc/session_messages.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/wire/geometry_codec.h"
#include "server/wire/timing_encoder.h"

namespace attention::server {
namespace {

v1::SessionState EncodeState(SessionState state) {
  switch (state) {
    case SessionState::kBusy:
      return v1::SESSION_STATE_BUSY;
    case SessionState::kSpilled:
      return v1::SESSION_STATE_SPILLED;
    case SessionState::kIdle:
      break;
  }
  return v1::SESSION_STATE_IDLE;
}

}  // namespace

SessionHandle DecodeHandle(const v1::SessionHandle& wire) {
  return {wire.server_name(), wire.server_epoch(), wire.session_id(), wire.writer()};
}

absl::StatusOr<SessionTable::NewSession> DecodeNewSession(const v1::CreateSessionRequest& wire,
                                                          const std::string& tenant) {
  if (!wire.has_geometry()) {
    return absl::InvalidArgumentError("geometry is missing, expected the shape of the cache");
  }
  SessionTable::NewSession session;
  session.tenant = tenant;
  ATTENTION_ASSIGN_OR_RETURN(session.shape, DecodeGeometry(wire.geometry()));
  session.expected_tokens = wire.expected_tokens();
  session.name = wire.name();
  session.labels = {wire.labels().begin(), wire.labels().end()};
  if (wire.has_ttl()) {
    ATTENTION_ASSIGN_OR_RETURN(session.ttl, DecodeTtl(wire.ttl()));
  }
  return session;
}

absl::StatusOr<absl::Duration> DecodeTtl(const google::protobuf::Duration& wire) {
  const absl::Duration ttl = absl::Seconds(wire.seconds()) + absl::Nanoseconds(wire.nanos());
  if (ttl != absl::ZeroDuration()) return ttl;
  return absl::InvalidArgumentError("ttl is 0s, expected more than 0, or absent");
}

absl::Status AtSession(absl::string_view entry, const absl::Status& status) {
  absl::Status named(status.code(), absl::StrCat(entry, ": ", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { named.SetPayload(url, payload); });
  return named;
}

absl::StatusOr<SessionFilter> DecodeFilter(const v1::ListSessionsRequest& wire) {
  SessionFilter filter;
  filter.name = wire.name();
  filter.labels = {wire.labels().begin(), wire.labels().end()};
  switch (wire.state()) {
    case v1::SESSION_STATE_UNSPECIFIED:
      return filter;
    case v1::SESSION_STATE_IDLE:
      filter.state = SessionState::kIdle;
      return filter;
    case v1::SESSION_STATE_BUSY:
      filter.state = SessionState::kBusy;
      return filter;
    case v1::SESSION_STATE_SPILLED:
      filter.state = SessionState::kSpilled;
      return filter;
    default:
      return absl::InvalidArgumentError(absl::StrCat("state is ", static_cast<int>(wire.state()),
                                                     ", expected one of SessionState's"));
  }
}

void EncodeSession(const SessionTable& table, const Session& session, int own_leases,
                   v1::Session* wire) {
  wire->mutable_handle()->set_server_name(table.server_name());
  wire->mutable_handle()->set_server_epoch(table.server_epoch());
  wire->mutable_handle()->set_session_id(session.session_id);
  const KvCache& cache = *session.cache;
  wire->mutable_handle()->set_writer(cache.writer());
  EncodeGeometry(cache.shape(), wire->mutable_geometry());
  bool is_compacted = false;
  for (int layer = 0; layer < cache.num_layers(); ++layer) {
    wire->add_layer_lengths(cache.length(layer));
    is_compacted |= cache.num_held(layer) < cache.length(layer);
  }
  for (int layer = 0; is_compacted && layer < cache.num_layers(); ++layer) {
    wire->add_layer_tokens(cache.num_held(layer));
  }
  wire->set_committed_length(cache.committed_length());
  wire->set_kv_bytes(cache.kv_bytes());
  EncodeDuration(session.ttl, wire->mutable_ttl());
  EncodeTime(session.create_time, wire->mutable_create_time());
  EncodeTime(session.expire_time(), wire->mutable_expire_time());
  wire->set_name(session.name);
  wire->mutable_labels()->insert(session.labels.begin(), session.labels.end());
  wire->set_state(EncodeState(session.state(own_leases)));
}

void EncodeSession(const SessionTable& table, const SessionLease& session, v1::Session* wire) {
  EncodeSession(table, *session, /*own_leases=*/1, wire);
}

StepTarget TargetOf(const Session& session, std::uint64_t writer, int layer) {
  const KvCache& cache = *session.cache;
  StepTarget target{session.cache, cache.device(), {}, cache.num_layers()};
  if (layer >= 0 && layer < target.num_layers) {
    target.shape = cache.shape().layer(layer);
    target.length = cache.num_held(layer);
  }
  target.writer = writer;
  return target;
}

}  // namespace attention::server
