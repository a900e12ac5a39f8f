#include "server/server_app.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "kernels/registry.h"
#include "server/base/status_macros.h"
#include "server/base/version.h"
#include "server/engine/worker.h"
#include "server/observe/admin_server.h"
#include "server/observe/logging.h"
#include "server/observe/metrics_text.h"
#include "server/rpc/grpc_log.h"
#include "server/rpc/grpc_server.h"
#include "server/rpc/shared_memory_lane.h"

namespace attention::server {
namespace {

// Of tensors' buffers between calls: as much as a few of the largest common requests.
constexpr std::size_t kMaxIdleBufferBytes = std::size_t{256} << 20;

std::size_t KvCapacity(const ServerConfig& config) {
  if (config.kv_capacity_bytes > 0) return static_cast<std::size_t>(config.kv_capacity_bytes);
  const auto memory = static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
                      static_cast<std::size_t>(sysconf(_SC_PAGE_SIZE));
  return memory / 4;
}

Scheduler::Limits SchedulerLimits(const ServerConfig& config) {
  Scheduler::Limits limits;
  limits.queue = {config.max_queued_requests, config.max_queued_bytes};
  limits.policy.max_batch_requests = config.max_batch_requests;
  limits.policy.max_batch_work = config.max_batch_work;
  limits.policy.long_share = config.long_work_share;
  limits.policy.tenant_weights = config.tenant_weights;
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
int CompletionThreads(const ServerConfig& config) {
  if (config.completion_threads > 0) return config.completion_threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 4);
}

ServiceLimits WireLimits(const ServerConfig& config) {
  return {config.max_message_bytes,   config.max_queued_requests,     config.max_queued_bytes,
          config.max_sessions,        config.max_sessions_per_tenant, config.max_session_ttl,
          config.max_stream_requests, CompletionThreads(config)};
}

// Written beside and renamed, so that a reader never sees half of it.
absl::Status WritePortFile(const std::string& path, const std::vector<std::string>& addresses,
                           const std::string& admin_address) {
  if (path.empty()) return absl::OkStatus();
  const std::string temporary = path + ".tmp";
  {
    std::ofstream file(temporary);
    file << nlohmann::json{{"listen", addresses}, {"admin_listen", admin_address}} << "\n";
    if (!file.flush()) {
      return absl::UnavailableError(absl::StrCat("port-file: cannot write ", temporary));
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("port-file: cannot write ", path));
}

class ServerAppImpl final : public ServerApp {
 public:
  ServerAppImpl(const ServerConfig& config, std::unique_ptr<AttentionBackend> backend)
      : config_(config),
        backend_(std::move(backend)),
        buffers_(backend_->memory(), kMaxIdleBufferBytes),
        pool_(backend_->memory(), KvCapacity(config)),
        caches_(*backend_, pool_, config.kv_page_size),
        sessions_(config.worker_name, static_cast<std::uint64_t>(absl::ToUnixNanos(clock_.Now())),
                  SessionLimits(config), caches_, clock_, metrics_),
        ceilings_(backend_->Ceilings()),
        worker_(*backend_, clock_, metrics_),
        scheduler_(worker_, SchedulerLimits(config), clock_, metrics_),
        regions_({config.max_shared_bytes_per_tenant, config.max_shared_regions_per_tenant}) {}

  ~ServerAppImpl() override {
    if (grpc_ != nullptr) DrainAndStop();
    if (reaper_.joinable()) {
      stop_reaper_.Notify();
      reaper_.join();
    }
  }

  absl::Status Start() {
    ATTENTION_RETURN_IF_ERROR(StartLane());
    const ServiceContext services{scheduler_,
                                  sessions_,
                                  pool_,
                                  *backend_,
                                  ceilings_,
                                  clock_,
                                  metrics_,
                                  call_log_,
                                  calls_in_flight_,
                                  buffers_,
                                  lane_ == nullptr ? nullptr : &regions_,
                                  lane_ == nullptr ? "" : lane_->path(),
                                  WireLimits(config_)};
    RouteGrpcLog([](GrpcLogSeverity severity, const char* message) {
      spdlog::log(severity == GrpcLogSeverity::kError ? spdlog::level::warn : spdlog::level::debug,
                  "grpc: {}", message);
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
    const BackendInfo& info = backend_->info();
    spdlog::info("attention-server {} ({}) listens on {}, admin on {}", kVersion, kCommit,
                 absl::StrJoin(addresses_, ", "), admin_address_.empty() ? "-" : admin_address_);
    spdlog::info("backend {} on {} ({}, {} threads), {} MiB for KV pages", info.name, info.device,
                 info.isa, info.num_threads, pool_.capacity_bytes() >> 20);
    return absl::OkStatus();
  }

  const std::vector<std::string>& addresses() const override { return addresses_; }
  const std::string& admin_address() const override { return admin_address_; }

  void DrainAndStop() override {
    const absl::Time deadline = clock_.Now() + config_.drain_timeout;
    is_ready_.store(false);
    scheduler_.BeginDrain();
    grpc_->BeginDrain();
    if (!scheduler_.AwaitIdle(deadline)) {
      spdlog::warn("work in flight did not finish within the drain timeout");
    }
    grpc_->Shutdown(deadline);
    grpc_.reset();
  }

 private:
  absl::Status StartLane() {
    if (config_.shared_memory_listen.empty()) return absl::OkStatus();
    ATTENTION_ASSIGN_OR_RETURN(const Listener listener,
                               ParseListener(config_.shared_memory_listen));
    ATTENTION_ASSIGN_OR_RETURN(
        lane_, SharedMemoryLane::Start(listener, config_.max_shared_connections, regions_));
    return absl::OkStatus();
  }

  AdminServer::Pages AdminPages() {
    std::vector<Gauge> gauges = {
        {"kv_capacity_bytes", "Bytes for KV pages",
         [this] { return static_cast<double>(pool_.capacity_bytes()); }},
        {"kv_used_bytes", "Bytes of KV pages in use",
         [this] { return static_cast<double>(pool_.used_bytes()); }},
        {"sessions", "Live sessions",
         [this] { return static_cast<double>(sessions_.num_sessions()); }},
        {"shared_memory_bytes", "Shared memory that clients have registered",
         [this] { return static_cast<double>(regions_.bytes()); }},
        {"shared_memory_regions", "Regions of shared memory",
         [this] { return static_cast<double>(regions_.num_regions()); }},
        {"queued_requests", "Requests waiting for a worker",
         [this] { return static_cast<double>(scheduler_.load().requests); }},
        {"queued_bytes", "Bytes of tensors waiting for a worker",
         [this] { return static_cast<double>(scheduler_.load().bytes); }},
        {"queued_work_seconds", "Estimated computing time waiting for a worker",
         [this] { return absl::ToDoubleSeconds(scheduler_.load().work); }},
    };
    return {[this, gauges = std::move(gauges)] { return RenderMetrics(metrics_, gauges); },
            [this] { return is_ready_.load(); }};
  }

  void ReapLoop() {
    constexpr absl::Duration kPeriod = absl::Seconds(1);
    while (!stop_reaper_.WaitForNotificationWithTimeout(kPeriod)) {
      const int count = sessions_.ExpireIdle();
      if (count > 0) spdlog::info("dropped {} idle sessions", count);
    }
  }

  const ServerConfig config_;
  const RealClock clock_;
  ServerMetrics metrics_;
  SpdlogCallLog call_log_;
  CallsInFlight calls_in_flight_;
  std::unique_ptr<AttentionBackend> backend_;
  BufferPool buffers_;
  PagePool pool_;
  KvCacheFactory caches_;
  SessionTable sessions_;
  const DeviceCeilings ceilings_;
  Worker worker_;
  Scheduler scheduler_;
  std::atomic<bool> is_ready_{true};
  absl::Notification stop_reaper_;
  std::thread reaper_;
  RegionTable regions_;
  std::unique_ptr<SharedMemoryLane> lane_;  // null: shared memory is not offered
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<AdminServer> admin_;
  std::vector<std::string> addresses_;
  std::string admin_address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerApp>> ServerApp::Start(const ServerConfig& config) {
  ATTENTION_ASSIGN_OR_RETURN(auto backend, MakeBackend(config.backend, {config.threads}));
  auto app = std::make_unique<ServerAppImpl>(config, std::move(backend));
  ATTENTION_RETURN_IF_ERROR(app->Start());
  return app;
}

}  // namespace attention::server
