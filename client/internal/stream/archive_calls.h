// Exports and imports of sessions: between a stream of the program's and the server's streams.
#pragma once

#include <cstddef>
#include <istream>
#include <memory>
#include <ostream>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/session_types.h"
#include "client/internal/call/call_settings.h"
#include "client/internal/call/transport.h"

namespace attention::client::internal {

// Both block. An export that breaks off goes on where it was, as often as the retry policy says.
absl::Status ExportSession(const std::shared_ptr<Transport>& transport, std::size_t target,
                           const CallSettings& settings, const ExportSessionRequest& request,
                           std::ostream& archive);
absl::StatusOr<SessionInfo> ImportSession(const std::shared_ptr<Transport>& transport,
                                          std::size_t target, const CallSettings& settings,
                                          const ImportSessionRequest& request,
                                          std::istream& archive);

}  // namespace attention::client::internal
