// All that a server holds between calls: devices, sessions, layers, queues, and the bounds of each.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/auth/authenticator.h"
#include "server/base/clock.h"
#include "server/base/interrupt.h"
#include "server/base/metrics.h"
#include "server/base/process_memory.h"
#include "server/cache/kv_cache_factory.h"
#include "server/config/server_config.h"
#include "server/domain/tenant_ledger.h"
#include "server/domain/tenant_limits.h"
#include "server/layer/layer_table.h"
#include "server/listener/connections.h"
#include "server/listener/listener_health.h"
#include "server/make_devices.h"
#include "server/memory/buffer_pool.h"
#include "server/memory/result_ledger.h"
#include "server/memory_plan.h"
#include "server/observe/logging.h"
#include "server/rpc/calls_in_flight.h"
#include "server/rpc/credential_watch.h"
#include "server/rpc/receiving.h"
#include "server/rpc/service_context.h"
#include "server/scheduler/scheduler_pool.h"
#include "server/scheduler/work_budget.h"
#include "server/session/session_table.h"
#include "server/shared_memory/region_table.h"

namespace attention::server {

// The objects stand in the order in which they are made: each may use those above it.
struct ServerState {
  // The devices need both before there is anything else.
  struct Telemetry {
    RealClock clock;
    ServerMetrics metrics;
  };

  // Divides the memory, sets the devices up, reads the limits of tenants and packs the layers that
  // the configuration names.
  // Errors as of ServerApp::Start.
  static absl::StatusOr<std::unique_ptr<ServerState>> Make(const ServerConfig& config,
                                                           const BackendFactory& factory,
                                                           const Interrupt& interrupt);
  ServerState(const MemoryPlan& plan, std::unique_ptr<Telemetry> telemetry,
              std::unique_ptr<Authenticator> authenticator, Devices devices);
  ServerState(const ServerState&) = delete;
  ServerState& operator=(const ServerState&) = delete;

  // All devices of the machine, also those that are not used.
  std::vector<DeviceStatus> DeviceStatuses() const;
  bool IsAnyDeviceUsable() const;
  std::size_t spilled_bytes() const;

  const ServerConfig config;  // with the numbers that were left to the server
  const std::unique_ptr<Telemetry> telemetry;
  const Clock& clock = telemetry->clock;
  ServerMetrics& metrics = telemetry->metrics;
  const std::unique_ptr<Authenticator> authenticator;
  SpdlogCallLog call_log;
  CallsInFlight calls_in_flight;
  TenantLimits default_tenant_limits;  // that the file of limits may change
  TenantLimitsTable tenant_limits;
  // The amounts that each tenant holds. Caches and calls count there until they are gone.
  TenantLedger kv_bytes_of_tenants{TenantLimit::kKvBytes, &TenantLimits::kv_bytes, tenant_limits};
  TenantLedger streams_of_tenants{TenantLimit::kStreams, &TenantLimits::streams, tenant_limits,
                                  absl::Seconds(1)};
  WorkBudget work_budget{tenant_limits};
  const Devices devices;
  const std::vector<UnusedDevice> unused_devices;
  ResultLedger results;
  BufferPool buffers;
  FreedMemory freed_memory;
  KvCacheFactory caches;
  SessionTable sessions;
  // Packs layers on every device where each has memory of its own. Null: the first device's
  // projections serve all devices, or there are none.
  const std::unique_ptr<ProjectionBackend> projections_of_all;
  LayerTable layers;
  SchedulerPool scheduler;
  Connections connections;
  CredentialWatch credential_watch;
  ListenerHealth listener_health;
  ReceivingLedger receiving;
  ReceivingWatch receiving_watch;
  RegionTable regions;
  std::atomic<bool> is_draining{false};
};

}  // namespace attention::server
