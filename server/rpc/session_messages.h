// Sessions between their messages and the session table.
#pragma once

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

// INVALID_ARGUMENT unless it is more than 0.
absl::StatusOr<absl::Duration> DecodeTtl(const google::protobuf::Duration& wire);

// The same error, naming the entry that has the session: "handles[3]: ...".
absl::Status AtSession(absl::string_view entry, const absl::Status& status);

void EncodeSession(const SessionTable& table, const Session& session, v1::Session* wire);

// The session's cache as a step of `layer` meets it now.
StepTarget TargetOf(const Session& session, int layer);

}  // namespace attention::server
