// The limits of each room, taken from the configuration.
#pragma once

#include "absl/status/status.h"
#include "server/base/machine_limits.h"
#include "server/config/server_config.h"
#include "server/layer/layer_table.h"
#include "server/listener/connections.h"
#include "server/make_devices.h"
#include "server/rpc/receiving.h"
#include "server/rpc/service_context.h"
#include "server/scheduler/scheduler.h"
#include "server/session/session_table.h"
#include "server/shared_memory/channels.h"
#include "server/shared_memory/region_table.h"

namespace attention::server {

// INVALID_ARGUMENT when this process may not open as many sockets as are configured.
absl::Status CheckConnectionLimits(const ServerConfig& config);

// As configured, or else a number that suits the processors that this process may use.
int NumCompletionThreads(const ServerConfig& config, const MachineLimits& limits);

// `tenants` must outlive the scheduler.
Scheduler::Limits SchedulerLimits(const ServerConfig& config, TenantLimitsTable& tenants);
SessionTable::Limits SessionLimits(const ServerConfig& config);
LayerTable::Limits LayerLimits(const ServerConfig& config, const Devices& devices);
Connections::Limits ConnectionLimits(const ServerConfig& config);
ReceivingLedger::Limits ReceivingLimits(const ServerConfig& config);
RegionTable::Limits RegionLimits(const ServerConfig& config);
SharedMemoryChannels::Limits ChannelLimits(const ServerConfig& config);
ServiceLimits LimitsOfServices(const ServerConfig& config);

}  // namespace attention::server
