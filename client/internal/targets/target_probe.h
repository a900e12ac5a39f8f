// Why there is no connection to a target: gRPC knows only that there is none, so it is found out by
// connecting once more, without gRPC.
#pragma once

#include <string>

#include "absl/time/time.h"

namespace attention::client::internal {

// "connection refused by 127.0.0.1:7070", "the server at localhost:7070 speaks TLS, ..." for an
// address as ClientOptions::targets has them. Blocks for about `timeout` at most.
std::string DiagnoseTarget(const std::string& address, absl::Duration timeout);

}  // namespace attention::client::internal
