// Why there is no connection to a target: gRPC knows only that there is none, so it is found out by
// connecting once more, without gRPC.
#pragma once

#include <optional>
#include <string>

#include "absl/time/time.h"
#include "attention/client/credentials.h"

namespace attention::client::internal {

// "connection refused by 127.0.0.1:7070", "localhost:7070 speaks TLS, ..." for an address as
// ClientOptions::targets has them, and a client with these options. Blocks for about `timeout` at
// most.
std::string DiagnoseTarget(const std::string& target, const std::optional<TlsOptions>& tls,
                           absl::Duration timeout);

}  // namespace attention::client::internal
