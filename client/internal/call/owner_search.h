// The target that owns a session: known, or found by asking all targets for their names.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/internal/call/call_settings.h"
#include "client/internal/call/transport.h"

namespace attention::client::internal {

// Calls `ready` with the target of the server `server_name`, or with that target's failure. If it
// is not known which target that is, all are asked for their names first. If none has the name,
// `ready` gets the first target, whose server then says what it knows of the session.
void FindOwner(const std::shared_ptr<Transport>& transport, const std::string& server_name,
               const CallSettings& settings,
               std::function<void(absl::StatusOr<std::size_t>)> ready);

}  // namespace attention::client::internal
