// Sessions between their messages and the session table.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "attention/v1/session_service.pb.h"
#include "server/domain/step_target.h"
#include "server/session/session_table.h"

namespace attention::server {

SessionHandle DecodeHandle(const v1::SessionHandle& wire);

// INVALID_ARGUMENT names the field.
absl::StatusOr<SessionTable::NewSession> DecodeNewSession(const v1::CreateSessionRequest& wire,
                                                          const std::string& tenant);

absl::StatusOr<SessionFilter> DecodeFilter(const v1::ListSessionsRequest& wire);

// INVALID_ARGUMENT unless it is more than 0.
absl::StatusOr<absl::Duration> DecodeTtl(const google::protobuf::Duration& wire);

// The same error, naming the entry that has the session: "handles[3]: ...".
absl::Status AtSession(absl::string_view entry, const absl::Status& status);

// `own_leases`: the caller's, which do not make it busy.
void EncodeSession(const SessionTable& table, const Session& session, int own_leases,
                   v1::Session* wire);
void EncodeSession(const SessionTable& table, const SessionLease& session, v1::Session* wire);

// The session's cache as a step of `layer`, by the handle of this writer, meets it now.
StepTarget TargetOf(const Session& session, std::uint64_t writer, int layer);

}  // namespace attention::server
