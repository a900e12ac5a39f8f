// The file that tells scripts which addresses a server has, port 0 among them.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace attention::server {

// {"listen": [...], "admin_listen": "..."} as JSON. Written beside and renamed, so that a reader
// never sees half of it. UNAVAILABLE names the file and the system's reason, and nothing is left.
// An empty path: nothing is written.
absl::Status WritePortFile(const std::string& path, const std::vector<std::string>& addresses,
                           const std::string& admin_address);

}  // namespace attention::server
