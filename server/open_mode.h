// Open mode: without credentials, whoever calls says which tenant they are.
#pragma once

#include "absl/status/status.h"
#include "server/config/server_config.h"

namespace attention::server {

// INVALID_ARGUMENT when no credentials are configured and an address can be reached from beyond
// this host, unless the configuration says that this is meant.
absl::Status CheckOpenMode(const ServerConfig& config);

}  // namespace attention::server
