// Divides the memory that the process may use among all that a server uses memory for.
//
// Configured amounts are taken as they are; what is left is divided among the rest, by fixed
// shares.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/base/machine_limits.h"
#include "server/config/server_config.h"

namespace attention::server {

struct MemoryPlan {
  // The configuration as it was given, with a number of bytes for every key that leaves them to the
  // server, but for those of memory that a GPU has.
  ServerConfig config;
  std::int64_t memory_bytes = 0;       // that the process may use
  std::int64_t idle_buffer_bytes = 0;  // of tensors' buffers between calls
  std::string text;                    // the whole budget, for the log
};

// INVALID_ARGUMENT names each configured key and its bytes when they exceed what there is, or says
// which key contradicts another.
absl::StatusOr<MemoryPlan> PlanMemory(const ServerConfig& config, const MachineLimits& limits);

}  // namespace attention::server
