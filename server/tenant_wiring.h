// The limits of tenants in a server: their defaults, their file, and their figures on /metrics.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config/server_config.h"
#include "server/domain/tenant_limits.h"
#include "server/observe/metric_families.h"
#include "server/server_state.h"

namespace attention::server {

// The limits of a tenant of which the file says nothing: parts of what the server has.
TenantLimits DefaultTenantLimits(const ServerConfig& config, std::int64_t kv_capacity_bytes,
                                 std::int64_t layer_capacity_bytes);

// The limits of the configured file, or the defaults for everybody.
absl::StatusOr<TenantLimitsSet> ConfiguredTenantLimits(const ServerConfig& config,
                                                       const TenantLimits& defaults);

// Reads the file again. The limits are those of before when it is wrong; the log says which.
void ReloadTenantLimits(ServerState& state);

// `state` must outlive them.
std::vector<LabelledMetric> TenantMetrics(ServerState& state);

}  // namespace attention::server
