#include "server/server_app.h"

#include <spdlog/spdlog.h>

#include <atomic>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/admin_pages.h"
#include "server/base/descriptors.h"
#include "server/base/status_macros.h"
#include "server/base/version.h"
#include "server/listener/listener.h"
#include "server/observe/admin_server.h"
#include "server/observe/logging.h"
#include "server/port_file.h"
#include "server/room_limits.h"
#include "server/rpc/grpc_log.h"
#include "server/rpc/grpc_server.h"
#include "server/server_state.h"
#include "server/shared_memory/channels.h"
#include "server/tenant_wiring.h"
#include "server/upkeep.h"

namespace attention::server {
namespace {

void LogDevices(const ServerState& state) {
  for (std::size_t i = 0; i < state.devices.size(); ++i) {
    const BackendInfo& info = state.devices[i]->backend().info();
    spdlog::info("worker {}: backend {} on {} ({}, {} threads), {} MiB for KV pages", i, info.name,
                 info.device, info.isa, info.num_threads,
                 state.devices[i]->pages().capacity_bytes() >> 20);
  }
  const std::string& no_projections = state.devices[0]->backend().info().no_projections;
  if (!no_projections.empty()) spdlog::warn("layers cannot be created: {}", no_projections);
  for (const UnusedDevice& device : state.unused_devices) {
    spdlog::info("{} {} is not used: {}", device.backend,
                 device.device.empty() ? "device" : device.device, device.reason);
  }
}

class ServerAppImpl final : public ServerApp {
 public:
  explicit ServerAppImpl(std::unique_ptr<ServerState> state) : state_(std::move(state)) {}
  ~ServerAppImpl() override {
    if (grpc_ != nullptr) DrainAndStop();
  }

  absl::Status Start() {
    const ServerConfig& config = state_->config;
    ATTENTION_RETURN_IF_ERROR(StartChannels());
    ATTENTION_RETURN_IF_ERROR(StartGrpc());
    if (!config.admin_listen.empty()) {
      ATTENTION_ASSIGN_OR_RETURN(admin_,
                                 AdminServer::Start(config.admin_listen, MakeAdminPages(*state_)));
      admin_address_ = admin_->address();
    }
    upkeep_ = std::make_unique<Upkeep>(*state_, *grpc_);
    ATTENTION_RETURN_IF_ERROR(WritePortFile(config.port_file, addresses_, admin_address_));
    LogStart();
    return absl::OkStatus();
  }

  const std::vector<std::string>& addresses() const override { return addresses_; }
  const std::string& admin_address() const override { return admin_address_; }
  bool is_beyond_help() const override { return upkeep_->recovery_timed_out(); }
  bool is_asked_to_stop() const override { return is_asked_to_stop_.load(); }

  void ReloadFiles() override { ReloadTenantLimits(*state_); }

  void DrainAndStop() override {
    const ServerConfig& config = state_->config;
    state_->is_draining.store(true);
    if (config.drain_delay > absl::ZeroDuration()) {
      grpc_->AnnounceDrain();
      absl::SleepFor(config.drain_delay);
    }
    const absl::Time deadline = state_->clock.Now() + config.drain_timeout;
    state_->scheduler.BeginDrain();
    grpc_->BeginDrain();
    if (!state_->scheduler.AwaitIdle(deadline)) {
      spdlog::warn("work in flight did not finish within the drain timeout");
    }
    if (upkeep_ != nullptr) upkeep_->Stop();  // it uses what goes now
    grpc_->Shutdown(deadline);
    grpc_.reset();
    EndLogPeriod();
  }

 private:
  absl::Status StartChannels() {
    if (state_->config.shared_memory_listen.empty()) return absl::OkStatus();
    ATTENTION_ASSIGN_OR_RETURN(const Listener listener,
                               ParseListener(state_->config.shared_memory_listen));
    ATTENTION_ASSIGN_OR_RETURN(
        channels_, SharedMemoryChannels::Start(
                       listener, ChannelLimits(state_->config), state_->sessions.server_epoch(),
                       state_->regions, [this](const auto& caller) { return TenantOf(caller); }));
    return absl::OkStatus();
  }

  // The same credentials as those of a call.
  absl::StatusOr<std::string> TenantOf(const SharedMemoryChannels::Caller& caller) const {
    const Authenticator& authenticator = *state_->authenticator;
    const std::optional<Identity> user = authenticator.OfUser(caller.user, caller.group);
    const std::string authorization = absl::StrCat("Bearer ", caller.token);
    Credentials credentials;
    if (!caller.token.empty()) credentials.authorization = authorization;
    if (user) credentials.of_connection = &*user;
    if (!caller.tenant.empty()) credentials.tenant = caller.tenant;
    ATTENTION_ASSIGN_OR_RETURN(Identity identity,
                               authenticator.Check(credentials, state_->clock.Now()));
    if (!IsTenantName(identity.tenant)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tenant has ", identity.tenant.size(),
                       " bytes or such that are not printable, expected 1 to ", kMaxTenantBytes,
                       " printable ASCII characters"));
    }
    return std::move(identity.tenant);
  }

  absl::Status StartGrpc() {
    RouteGrpcLog([](GrpcLogSeverity severity, const char* message) {
      LogSampled("grpc", severity == GrpcLogSeverity::kError, message);
    });
    std::vector<Listener> listeners;
    for (const std::string& text : state_->config.listen) {
      ATTENTION_ASSIGN_OR_RETURN(Listener listener, ParseListener(text));
      listeners.push_back(std::move(listener));
    }
    ATTENTION_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(listeners, Services()));
    addresses_ = grpc_->addresses();
    return absl::OkStatus();
  }

  ServiceContext Services() {
    ServerState& state = *state_;
    RecoveringBackend& backend = state.devices[0]->backend();
    return {state.scheduler,
            state.sessions,
            state.layers,
            [&state] { return state.DeviceStatuses(); },
            backend,
            WorkModel(backend.Ceilings()),
            state.clock,
            *state.authenticator,
            state.credential_watch,
            nullptr,
            state.metrics,
            state.call_log,
            state.calls_in_flight,
            state.connections,
            state.listener_health,
            state.receiving,
            [this] { is_asked_to_stop_.store(true); },
            [](const std::string& text) { spdlog::warn("{}", text); },
            state.buffers,
            state.results,
            state.tenant_limits,
            state.streams_of_tenants,
            channels_ == nullptr ? nullptr : &state.regions,
            channels_ == nullptr ? "" : channels_->path(),
            LimitsOfServices(state.config)};
  }

  void LogStart() const {
    spdlog::info("attention-server {} ({}) listens on {}, admin on {}", kVersion, kCommit,
                 absl::StrJoin(addresses_, ", "), admin_address_.empty() ? "-" : admin_address_);
    const Connections::Limits& limits = state_->connections.limits();
    spdlog::info("{} files and sockets may be open, {} connections, {} of one peer",
                 DescriptorLimit(), limits.all, limits.per_peer);
    LogDevices(*state_);
  }

  const std::unique_ptr<ServerState> state_;
  std::atomic<bool> is_asked_to_stop_{false};       // by an administrator's call
  std::unique_ptr<SharedMemoryChannels> channels_;  // null: shared memory is not offered
  std::unique_ptr<GrpcServer> grpc_;                // null: not listening yet, or drained
  std::unique_ptr<Upkeep> upkeep_;
  std::unique_ptr<AdminServer> admin_;
  std::vector<std::string> addresses_;
  std::string admin_address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerApp>> ServerApp::Start(const ServerConfig& config,
                                                            const BackendFactory& factory,
                                                            const Interrupt& interrupt) {
  ATTENTION_ASSIGN_OR_RETURN(std::unique_ptr<ServerState> state,
                             ServerState::Make(config, factory, interrupt));
  auto app = std::make_unique<ServerAppImpl>(std::move(state));
  ATTENTION_RETURN_IF_ERROR(app->Start());
  return app;
}

}  // namespace attention::server
