#include "server/server_state.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/machine_limits.h"
#include "server/base/status_macros.h"
#include "server/engine/bound_projection.h"
#include "server/open_mode.h"
#include "server/room_limits.h"
#include "server/tenant_wiring.h"
#include "server/wire/preload_file.h"

namespace attention::server {
namespace {

std::vector<KvCacheFactory::Place> PlacesOf(const Devices& devices) {
  std::vector<KvCacheFactory::Place> places;
  for (const auto& device : devices) {
    places.push_back({device->backend(), device->pages(), &device->caches(),
                      device->has_spill() ? &device->host_pages() : nullptr});
  }
  return places;
}

std::vector<std::string> NamesOf(const Devices& devices) {
  std::vector<std::string> names;
  for (const auto& device : devices) names.push_back(device->backend().info().device);
  return names;
}

std::vector<std::unique_ptr<Scheduler>> SchedulersOf(const Devices& devices,
                                                     const Scheduler::Limits& limits,
                                                     const Clock& clock, ServerMetrics& metrics) {
  std::vector<std::unique_ptr<Scheduler>> schedulers;
  for (const auto& device : devices) {
    schedulers.push_back(std::make_unique<Scheduler>(device->worker(), limits, clock, metrics));
  }
  return schedulers;
}

std::unique_ptr<ProjectionBackend> ProjectionsOfAll(const Devices& devices) {
  if (devices.size() == 1 || devices[0]->backend().memory().outlives_backend()) return nullptr;
  std::vector<ProjectionBackend*> projections;
  for (const auto& device : devices) {
    if (device->backend().projections() == nullptr) return nullptr;
    projections.push_back(device->backend().projections());
  }
  return std::make_unique<ReplicatedProjections>(std::move(projections));
}

void LogFailure(std::size_t worker, const BackendInfo& info, const absl::Status& failure,
                const absl::Status& recovery) {
  if (recovery.ok()) {
    spdlog::error("worker {}: {} failed and was set up again: {}", worker, info.device,
                  failure.ToString());
  } else {
    spdlog::error("worker {}: {} failed: {}; it could not be set up again: {}", worker, info.device,
                  failure.ToString(), recovery.ToString());
  }
}

absl::Status SetTenantLimits(ServerState& state) {
  state.default_tenant_limits = DefaultTenantLimits(state.config, state.caches.capacity_bytes(),
                                                    state.layers.limits().capacity_bytes);
  ATTENTION_ASSIGN_OR_RETURN(TenantLimitsSet limits,
                             ConfiguredTenantLimits(state.config, state.default_tenant_limits));
  state.tenant_limits.Replace(std::move(limits));
  return absl::OkStatus();
}

absl::Status PreloadLayers(const std::string& path, LayerTable& layers,
                           const Interrupt& interrupt) {
  if (path.empty()) return absl::OkStatus();
  ATTENTION_ASSIGN_OR_RETURN(const std::vector<PreloadedLayer> preloaded, ReadPreloadFile(path));
  spdlog::info("preloading {} layers", preloaded.size());
  for (const PreloadedLayer& layer : preloaded) {
    ATTENTION_RETURN_IF_ERROR(Preload(layer, layers, interrupt));
  }
  spdlog::info("preloaded {} layers, {} MiB of weights", preloaded.size(),
               layers.weight_bytes() >> 20);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerState>> ServerState::Make(const ServerConfig& config,
                                                               const BackendFactory& factory,
                                                               const Interrupt& interrupt) {
  ATTENTION_RETURN_IF_ERROR(CheckConnectionLimits(config));
  ATTENTION_RETURN_IF_ERROR(CheckOpenMode(config));
  ATTENTION_ASSIGN_OR_RETURN(std::unique_ptr<Authenticator> authenticator,
                             Authenticator::Create(config.auth));
  const MachineLimits limits = ReadMachineLimits();
  LimitArenas(limits.memory_bytes);
  ATTENTION_ASSIGN_OR_RETURN(MemoryPlan plan, PlanMemory(config, limits));
  plan.config.completion_threads = NumCompletionThreads(config, limits);
  spdlog::info("{}", plan.text);
  if (limits.cpus) spdlog::info("processors: {} of time ({})", *limits.cpus, limits.cpu_source);
  auto telemetry = std::make_unique<Telemetry>();
  ATTENTION_ASSIGN_OR_RETURN(Devices devices, MakeDevices(plan.config, limits, factory, LogFailure,
                                                          telemetry->clock, telemetry->metrics));
  ATTENTION_RETURN_IF_ERROR(Ask(interrupt));
  auto state = std::make_unique<ServerState>(plan, std::move(telemetry), std::move(authenticator),
                                             std::move(devices));
  ATTENTION_RETURN_IF_ERROR(SetTenantLimits(*state));
  ATTENTION_RETURN_IF_ERROR(PreloadLayers(config.preload_layers, state->layers, interrupt));
  return state;
}

ServerState::ServerState(const MemoryPlan& plan, std::unique_ptr<Telemetry> given_telemetry,
                         std::unique_ptr<Authenticator> given_authenticator, Devices given_devices)
    : config(plan.config),
      telemetry(std::move(given_telemetry)),
      authenticator(std::move(given_authenticator)),
      devices(std::move(given_devices)),
      unused_devices(UnusedGpus(VisibleGpus(), config.backend, NamesOf(devices))),
      results(config.max_result_bytes),
      buffers(devices[0]->backend().host_memory(),
              static_cast<std::size_t>(plan.idle_buffer_bytes)),
      freed_memory(std::min(plan.idle_buffer_bytes, config.max_receiving_bytes / 4),
                   plan.memory_bytes),
      caches(PlacesOf(devices), config.kv_page_size, &kv_bytes_of_tenants),
      sessions(config.server_name, static_cast<std::uint64_t>(absl::ToUnixNanos(clock.Now())),
               SessionLimits(config), caches, clock, metrics, tenant_limits),
      projections_of_all(ProjectionsOfAll(devices)),
      layers(projections_of_all != nullptr ? projections_of_all.get()
                                           : devices[0]->backend().projections(),
             LayerLimits(config, devices), clock, tenant_limits),
      scheduler(SchedulersOf(devices, SchedulerLimits(config, tenant_limits), clock, metrics),
                &work_budget),
      connections(ConnectionLimits(config)),
      credential_watch([this](const std::string& address) { return connections.Close(address); },
                       [](const std::string& text) { spdlog::warn("{}", text); }),
      listener_health(metrics),
      receiving(ReceivingLimits(config),
                [this](const std::string& peer) { return connections.ReceivedBytes(peer); }),
      receiving_watch(receiving, clock),
      regions(RegionLimits(config)) {}

std::vector<DeviceStatus> ServerState::DeviceStatuses() const {
  std::vector<DeviceStatus> statuses;
  for (const auto& device : devices) {
    DeviceStatus& status = statuses.emplace_back();
    status.info = device->backend().info();
    status.is_used = device->backend().is_usable();
    if (!status.is_used) status.unused_reason = "it failed and could not be set up again yet";
    status.kv_capacity_bytes = static_cast<std::int64_t>(device->pages().capacity_bytes());
    status.kv_free_bytes = static_cast<std::int64_t>(device->pages().free_bytes());
  }
  for (const UnusedDevice& unused : unused_devices) {
    DeviceStatus& status = statuses.emplace_back();
    status.info.name = unused.backend;
    status.info.device = unused.device;
    status.is_used = false;
    status.unused_reason = unused.reason;
  }
  return statuses;
}

bool ServerState::IsAnyDeviceUsable() const {
  return std::any_of(devices.begin(), devices.end(),
                     [](const auto& device) { return device->backend().is_usable(); });
}

std::size_t ServerState::spilled_bytes() const {
  std::size_t sum = 0;
  for (const auto& device : devices) sum += device->host_pages().used_bytes();
  return sum;
}

}  // namespace attention::server
