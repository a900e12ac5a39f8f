// Readiness beyond a connection: that servers take the client's credentials.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/internal/call/transport.h"

namespace attention::client::internal {

// Asks every target for its description. The first refusal of the credentials (UNAUTHENTICATED,
// PERMISSION_DENIED), with the target named, or why there is no token; any other answer is fine.
// Blocks; the deadline bounds it.
absl::Status CheckAccepted(Transport& transport, absl::Time deadline);

}  // namespace attention::client::internal
