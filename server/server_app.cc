#include "server/server_app.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "server/base/descriptors.h"
#include "server/base/machine_limits.h"
#include "server/base/process_memory.h"
#include "server/base/status_macros.h"
#include "server/base/version.h"
#include "server/engine/bound_projection.h"
#include "server/engine/device_watch.h"
#include "server/layer/layer_table.h"
#include "server/listener/connections.h"
#include "server/listener/listener_health.h"
#include "server/make_devices.h"
#include "server/memory_plan.h"
#include "server/observe/admin_server.h"
#include "server/observe/logging.h"
#include "server/observe/metrics_page.h"
#include "server/port_file.h"
#include "server/rpc/grpc_log.h"
#include "server/rpc/grpc_server.h"
#include "server/shared_memory/channels.h"
#include "server/wire/preload_file.h"

namespace attention::server {
namespace {

// Unless configured or planned: of devices with memory of their own half of what KV pages leave, on
// each.
std::int64_t LayerCapacity(const ServerConfig& config,
                           const std::vector<std::unique_ptr<Device>>& devices) {
  if (config.layer_capacity_bytes > 0) return config.layer_capacity_bytes;
  std::size_t least_free = static_cast<std::size_t>(-1);
  for (const auto& device : devices) {
    least_free = std::min(least_free, device->backend().memory().free_bytes());
  }
  return static_cast<std::int64_t>(least_free / 10 * devices.size());
}

Scheduler::Limits SchedulerLimits(const ServerConfig& config) {
  Scheduler::Limits limits;
  limits.queue = {config.max_queued_requests, config.max_queued_bytes};
  limits.policy.max_batch_requests = config.max_batch_requests;
  limits.policy.max_batch_work = config.max_batch_work;
  limits.policy.max_contended_batch_work = config.max_contended_batch_work;
  limits.policy.long_share = config.long_work_share;
  limits.policy.tenants.weights = config.tenant_weights;
  limits.policy.tenants.max_unlisted = config.max_active_tenants;
  limits.max_inline_work = config.max_inline_work;
  return limits;
}

SessionTable::Limits SessionLimits(const ServerConfig& config) {
  return {config.max_sessions, config.max_sessions_per_tenant, config.session_ttl,
          config.max_session_ttl};
}

// One is the fastest on two cores: a second costs 10 to 50 % of the latency of small calls, and up
// to half of the throughput of large ones, by taking a core from who computes or calls
// (tests/benchmark/transport, --study apis).
int NumCompletionThreads(const ServerConfig& config, const MachineLimits& limits) {
  if (config.completion_threads > 0) return config.completion_threads;
  const auto num_cpus = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, UsableCpus(limits, num_cpus) / 4);
}

ServiceLimits WireLimits(const ServerConfig& config) {
  ServiceLimits limits;
  limits.max_message_bytes = config.max_message_bytes;
  limits.max_response_bytes = config.max_response_bytes;
  limits.max_queued_requests = config.max_queued_requests;
  limits.max_queued_bytes = config.max_queued_bytes;
  limits.max_sessions = config.max_sessions;
  limits.max_sessions_per_tenant = config.max_sessions_per_tenant;
  limits.max_session_ttl = config.max_session_ttl;
  limits.max_stream_requests = config.max_stream_requests;
  limits.max_stream_bytes = config.max_stream_bytes;
  limits.num_completion_threads = config.completion_threads;
  limits.max_pending_layers = config.max_pending_layers;
  limits.max_pending_layers_per_tenant = config.max_pending_layers_per_tenant;
  limits.upload_stall_timeout = config.upload_stall_timeout;
  limits.keepalive_interval = config.keepalive_interval;
  limits.max_receiving_bytes = config.max_receiving_bytes;
  limits.max_calls = config.max_calls;
  return limits;
}

Connections::Limits ConnectionLimits(const ServerConfig& config) {
  const std::int64_t all = config.max_connections > 0 ? config.max_connections
                                                      : DefaultMaxConnections(DescriptorLimit());
  const std::int64_t per_peer = config.max_connections_per_peer > 0
                                    ? config.max_connections_per_peer
                                    : std::max<std::int64_t>(1, all / 2);
  return {static_cast<std::size_t>(all), static_cast<std::size_t>(per_peer)};
}

absl::Status CheckConnectionLimits(const ServerConfig& config) {
  const std::int64_t descriptors = DescriptorLimit();
  const std::int64_t largest = LargestMaxConnections(descriptors);
  if (config.max_connections <= largest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("max-connections is ", config.max_connections, ", expected at most ", largest,
                   ": this process may open ", descriptors, " files and sockets (ulimit -Hn)"));
}

RegionTable::Limits RegionLimits(const ServerConfig& config) {
  return {config.max_shared_bytes, config.max_shared_bytes_per_user,
          config.max_shared_bytes_per_connection, config.max_shared_regions,
          config.max_shared_regions_per_connection};
}

using Devices = std::vector<std::unique_ptr<Device>>;

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

// The projections that pack layers on every device, where the devices do not share one memory.
// Null: the first device's serve all, or it has none.
std::unique_ptr<ProjectionBackend> ReplicasOf(const Devices& devices) {
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

// Clock and metrics: what devices need before there are any.
struct Telemetry {
  RealClock clock;
  ServerMetrics metrics;
};

class ServerAppImpl final : public ServerApp {
 public:
  ServerAppImpl(const MemoryPlan& plan, Interrupt interrupt, std::unique_ptr<Telemetry> telemetry,
                Devices devices)
      : config_(plan.config),
        interrupt_(std::move(interrupt)),
        telemetry_(std::move(telemetry)),
        devices_(std::move(devices)),
        unused_devices_(UnusedGpus(VisibleGpus(), config_.backend, NamesOf(devices_))),
        results_(config_.max_result_bytes),
        buffers_(devices_[0]->backend().host_memory(),
                 static_cast<std::size_t>(plan.idle_buffer_bytes)),
        freed_memory_(std::min(plan.idle_buffer_bytes, plan.config.max_receiving_bytes / 4)),
        caches_(PlacesOf(devices_), config_.kv_page_size),
        sessions_(config_.server_name, static_cast<std::uint64_t>(absl::ToUnixNanos(clock_.Now())),
                  SessionLimits(config_), caches_, clock_, metrics_),
        projections_(ReplicasOf(devices_)),
        layers_(projections_ != nullptr ? projections_.get() : devices_[0]->backend().projections(),
                {LayerCapacity(config_, devices_), config_.max_layers_per_tenant,
                 devices_[0]->backend().info().no_projections, config_.max_layers},
                clock_),
        scheduler_(SchedulersOf(devices_, SchedulerLimits(config_), clock_, metrics_)),
        connections_(ConnectionLimits(config_)),
        listener_health_(metrics_),
        receiving_({config_.max_receiving_bytes, config_.upload_stall_timeout},
                   [this](const std::string& peer) { return connections_.ReceivedBytes(peer); }),
        receiving_watch_(receiving_, clock_),
        regions_(RegionLimits(config_)) {}

  ~ServerAppImpl() override {
    if (grpc_ != nullptr) DrainAndStop();
    StopReaper();
  }

  absl::Status Start() {
    ATTENTION_RETURN_IF_ERROR(CheckConnectionLimits(config_));
    ATTENTION_RETURN_IF_ERROR(PreloadLayers());
    ATTENTION_RETURN_IF_ERROR(StartSharedMemoryChannels());
    const ServiceContext services{scheduler_,
                                  sessions_,
                                  layers_,
                                  [this] { return DeviceStatuses(); },
                                  devices_[0]->backend(),
                                  WorkModel(devices_[0]->backend().Ceilings()),
                                  clock_,
                                  metrics_,
                                  call_log_,
                                  calls_in_flight_,
                                  connections_,
                                  listener_health_,
                                  receiving_,
                                  [](const std::string& text) { spdlog::warn("{}", text); },
                                  buffers_,
                                  results_,
                                  channels_ == nullptr ? nullptr : &regions_,
                                  channels_ == nullptr ? "" : channels_->path(),
                                  WireLimits(config_)};
    RouteGrpcLog([](GrpcLogSeverity severity, const char* message) {
      LogSampled("grpc", severity == GrpcLogSeverity::kError, message);
    });
    std::vector<Listener> listeners;
    for (const std::string& text : config_.listen) {
      ATTENTION_ASSIGN_OR_RETURN(Listener listener, ParseListener(text));
      listeners.push_back(std::move(listener));
    }
    ATTENTION_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(listeners, services));
    addresses_ = grpc_->addresses();
    if (!config_.admin_listen.empty()) {
      ATTENTION_ASSIGN_OR_RETURN(admin_, AdminServer::Start(config_.admin_listen, AdminPages()));
      admin_address_ = admin_->address();
    }
    reaper_ = std::thread([this] { ReapLoop(); });
    ATTENTION_RETURN_IF_ERROR(WritePortFile(config_.port_file, addresses_, admin_address_));
    spdlog::info("attention-server {} ({}) listens on {}, admin on {}", kVersion, kCommit,
                 absl::StrJoin(addresses_, ", "), admin_address_.empty() ? "-" : admin_address_);
    spdlog::info("{} files and sockets may be open, {} connections, {} of one peer",
                 DescriptorLimit(), connections_.limits().all, connections_.limits().per_peer);
    for (std::size_t i = 0; i < devices_.size(); ++i) {
      const BackendInfo& info = devices_[i]->backend().info();
      spdlog::info("worker {}: backend {} on {} ({}, {} threads), {} MiB for KV pages", i,
                   info.name, info.device, info.isa, info.num_threads,
                   devices_[i]->pages().capacity_bytes() >> 20);
    }
    if (const BackendInfo& info = devices_[0]->backend().info(); !info.no_projections.empty()) {
      spdlog::warn("layers cannot be created: {}", info.no_projections);
    }
    for (const UnusedDevice& device : unused_devices_) {
      spdlog::info("{} {} is not used: {}", device.backend,
                   device.device.empty() ? "device" : device.device, device.reason);
    }
    return absl::OkStatus();
  }

  const std::vector<std::string>& addresses() const override { return addresses_; }
  const std::string& admin_address() const override { return admin_address_; }
  bool is_beyond_help() const override { return recovery_timed_out_.load(); }

  void DrainAndStop() override {
    is_ready_.store(false);
    if (config_.drain_delay > absl::ZeroDuration()) {
      grpc_->AnnounceDrain();
      absl::SleepFor(config_.drain_delay);
    }
    const absl::Time deadline = clock_.Now() + config_.drain_timeout;
    scheduler_.BeginDrain();
    grpc_->BeginDrain();
    if (!scheduler_.AwaitIdle(deadline)) {
      spdlog::warn("work in flight did not finish within the drain timeout");
    }
    StopReaper();  // it looks at what goes now
    grpc_->Shutdown(deadline);
    grpc_.reset();
    EndLogPeriod();
  }

 private:
  absl::Status PreloadLayers() {
    if (config_.preload_layers.empty()) return absl::OkStatus();
    ATTENTION_ASSIGN_OR_RETURN(const std::vector<PreloadedLayer> layers,
                               ReadPreloadFile(config_.preload_layers));
    spdlog::info("preloading {} layers", layers.size());
    for (const PreloadedLayer& layer : layers) {
      ATTENTION_RETURN_IF_ERROR(Preload(layer, layers_, interrupt_));
    }
    spdlog::info("preloaded {} layers, {} MiB of weights", layers.size(),
                 layers_.weight_bytes() >> 20);
    return absl::OkStatus();
  }

  absl::Status StartSharedMemoryChannels() {
    if (config_.shared_memory_listen.empty()) return absl::OkStatus();
    ATTENTION_ASSIGN_OR_RETURN(const Listener listener,
                               ParseListener(config_.shared_memory_listen));
    ATTENTION_ASSIGN_OR_RETURN(
        channels_,
        SharedMemoryChannels::Start(
            listener, {config_.max_shared_connections, config_.max_shared_connections_per_user},
            sessions_.server_epoch(), regions_));
    return absl::OkStatus();
  }

  std::vector<DeviceStatus> DeviceStatuses() const {
    std::vector<DeviceStatus> statuses;
    for (const auto& device : devices_) {
      DeviceStatus& status = statuses.emplace_back();
      status.info = device->backend().info();
      status.is_used = device->backend().is_usable();
      if (!status.is_used) status.unused_reason = "it failed and could not be set up again yet";
      status.kv_capacity_bytes = static_cast<std::int64_t>(device->pages().capacity_bytes());
      status.kv_free_bytes = static_cast<std::int64_t>(device->pages().free_bytes());
    }
    for (const UnusedDevice& unused : unused_devices_) {
      DeviceStatus& status = statuses.emplace_back();
      status.info.name = unused.backend;
      status.info.device = unused.device;
      status.is_used = false;
      status.unused_reason = unused.reason;
    }
    return statuses;
  }

  AdminServer::Pages AdminPages() {
    std::vector<Gauge> gauges = {
        {"kv_capacity_bytes", "Bytes for KV pages",
         [this] { return static_cast<double>(caches_.capacity_bytes()); }},
        {"kv_used_bytes", "Bytes of KV pages in use",
         [this] { return static_cast<double>(caches_.used_bytes()); }},
        {"kv_spilled_bytes", "Bytes of KV pages of idle sessions in host memory",
         [this] { return static_cast<double>(SpilledBytes()); }},
        {"sessions", "Live sessions",
         [this] { return static_cast<double>(sessions_.num_sessions()); }},
        {"layers", "Registered layers",
         [this] { return static_cast<double>(layers_.num_layers()); }},
        {"layer_bytes", "Bytes of layers' weights, those being uploaded or still in use included",
         [this] { return static_cast<double>(layers_.weight_bytes()); }},
        {"connections", "Open connections of gRPC clients",
         [this] { return static_cast<double>(connections_.count()); }},
        {"shared_memory_bytes", "Shared memory of clients, until its pages are freed",
         [this] { return static_cast<double>(regions_.bytes()); }},
        {"shared_memory_regions", "Regions of that",
         [this] { return static_cast<double>(regions_.num_regions()); }},
        {"receiving_bytes", "Bytes of requests that have not wholly come",
         [this] { return static_cast<double>(receiving_.bytes()); }},
        {"resident_memory_bytes", "Memory of this process that lies in the machine's",
         [] { return static_cast<double>(ResidentBytes()); }},
        {"open_calls", "Calls that have come and that gRPC has not done with, streams included",
         [this] { return static_cast<double>(calls_in_flight_.num_open()); }},
        {"open_streams", "Those of them that are streams",
         [this] { return static_cast<double>(calls_in_flight_.num_streams()); }},
        {"queued_requests", "Requests waiting for a worker",
         [this] { return static_cast<double>(scheduler_.load().requests); }},
        {"queued_bytes", "Bytes of tensors waiting for a worker",
         [this] { return static_cast<double>(scheduler_.load().bytes); }},
        {"result_bytes",
         "Bytes of large results, from admission until their clients have read them",
         [this] { return static_cast<double>(results_.bytes()); }},
        {"queued_work_seconds", "Estimated computing time waiting for a worker",
         [this] { return absl::ToDoubleSeconds(scheduler_.load().work); }},
    };
    return {[this, gauges = std::move(gauges)](std::string_view accept) {
              return RenderMetrics(metrics_, gauges, accept);
            },
            [this] { return WhyNotReady(); }, [this] { return listener_health_.WhyNotAlive(); }};
  }

  // Empty: it takes work.
  std::string WhyNotReady() const {
    if (!is_ready_.load()) return "draining";
    if (!IsAnyDeviceUsable()) return "no device can be used";
    return listener_health_.WhyNotReady();
  }

  std::size_t SpilledBytes() const {
    std::size_t sum = 0;
    for (const auto& device : devices_) sum += device->host_pages().used_bytes();
    return sum;
  }

  bool IsAnyDeviceUsable() const {
    return std::any_of(devices_.begin(), devices_.end(),
                       [](const auto& device) { return device->backend().is_usable(); });
  }

  void StopReaper() {
    if (!reaper_.joinable()) return;
    stop_reaper_.Notify();
    reaper_.join();
  }

  void ReapLoop() {
    constexpr absl::Duration kPeriod = absl::Seconds(1);
    DeviceWatch watch(config_.device_recovery_timeout);
    while (!stop_reaper_.WaitForNotificationWithTimeout(kPeriod)) {
      const int count = sessions_.ExpireIdle();
      if (count > 0) spdlog::info("dropped {} idle or lost sessions", count);
      EndLogPeriod();
      freed_memory_.Tend();
      grpc_->EndStalled(clock_.Now());
      recovery_timed_out_.store(watch.RecoveryTimedOut(IsAnyDeviceUsable(), clock_.Now()));
    }
  }

  const ServerConfig config_;
  const Interrupt interrupt_;
  const std::unique_ptr<Telemetry> telemetry_;
  const Clock& clock_ = telemetry_->clock;
  ServerMetrics& metrics_ = telemetry_->metrics;
  SpdlogCallLog call_log_;
  CallsInFlight calls_in_flight_;
  const Devices devices_;
  const std::vector<UnusedDevice> unused_devices_;
  ResultLedger results_;
  BufferPool buffers_;
  FreedMemory freed_memory_;
  KvCacheFactory caches_;
  SessionTable sessions_;
  const std::unique_ptr<ProjectionBackend> projections_;  // of several devices
  LayerTable layers_;
  SchedulerPool scheduler_;
  std::atomic<bool> is_ready_{true};
  std::atomic<bool> recovery_timed_out_{false};
  absl::Notification stop_reaper_;
  std::thread reaper_;
  Connections connections_;
  ListenerHealth listener_health_;
  ReceivingLedger receiving_;
  ReceivingWatch receiving_watch_;
  RegionTable regions_;
  std::unique_ptr<SharedMemoryChannels> channels_;  // null: shared memory is not offered
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<AdminServer> admin_;
  std::vector<std::string> addresses_;
  std::string admin_address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerApp>> ServerApp::Start(const ServerConfig& config,
                                                            const BackendFactory& factory,
                                                            const Interrupt& interrupt) {
  const MachineLimits limits = ReadMachineLimits();
  ATTENTION_ASSIGN_OR_RETURN(MemoryPlan plan, PlanMemory(config, limits));
  plan.config.completion_threads = NumCompletionThreads(config, limits);
  spdlog::info("{}", plan.text);
  if (limits.cpus) spdlog::info("processors: {} of time ({})", *limits.cpus, limits.cpu_source);
  auto telemetry = std::make_unique<Telemetry>();
  ATTENTION_ASSIGN_OR_RETURN(Devices devices, MakeDevices(plan.config, limits, factory, LogFailure,
                                                          telemetry->clock, telemetry->metrics));
  ATTENTION_RETURN_IF_ERROR(Ask(interrupt));
  auto app =
      std::make_unique<ServerAppImpl>(plan, interrupt, std::move(telemetry), std::move(devices));
  ATTENTION_RETURN_IF_ERROR(app->Start());
  return app;
}

}  // namespace attention::server
