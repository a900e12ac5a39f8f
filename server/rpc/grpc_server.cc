#include "server/rpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <limits>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/base/status_macros.h"
#include "server/listener/connections.h"
#include "server/listener/listener_health.h"
#include "server/rpc/reset_watch.h"

namespace attention::server {
namespace {

// One message of a stream is one frame's worth of system calls: the largest frame HTTP/2 allows cut
// latency of 1 MiB messages by a tenth to a fifth on TCP and did nothing worse elsewhere.
constexpr int kMaxFrameBytes = 16777215;

// The most bytes of a call's metadata. Proxies let less through.
constexpr int kMaxMetadataBytes = 256 << 10;

constexpr int kMinPingIntervalMs = 10'000;

// After the last of our calls is done, or was given up: time for its answer to leave before
// connections are closed.
constexpr absl::Duration kClosingGrace = absl::Milliseconds(250);
// After gRPC has closed them: time for that to take effect before sockets are cut.
constexpr absl::Duration kCuttingGrace = absl::Milliseconds(100);

// Clients may look for a dead server with pings as often as the SDK does; the server looks for dead
// clients itself (those whose machine lost power, or that are frozen), whose streams hold sessions
// and answers.
void SetKeepalive(absl::Duration interval, grpc::ServerBuilder& builder) {
  const auto milliseconds = static_cast<int>(std::clamp<std::int64_t>(
      absl::ToInt64Milliseconds(interval), 1, std::numeric_limits<int>::max()));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, milliseconds);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, std::max(milliseconds / 3, 1));
  // gRPC would stop after two pings without data between them, and a stream may idle for hours.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

// The last resort for memory: beyond, gRPC ends whatever connections and calls it finds, so all
// that the server ends with a choice must come to less. It counts what was received until that is
// let go.
constexpr std::int64_t kQuotaSlack = std::int64_t{128} << 20;
constexpr std::int64_t kLeastCallsOfAConnection = 100;

void BoundWhatIsReceived(const ServiceLimits& limits, grpc::ServerBuilder& builder) {
  constexpr std::int64_t kMaxInt = std::numeric_limits<int>::max();
  builder.SetMaxReceiveMessageSize(
      static_cast<int>(std::min<std::int64_t>(limits.max_message_bytes, kMaxInt)));
  const std::int64_t calls = std::max(kLeastCallsOfAConnection, limits.max_calls / 4);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             static_cast<int>(std::min<std::int64_t>(calls, kMaxInt)));
  // A compressed message would be unpacked in full before its size is looked at: 400 KB become
  // 400 MiB.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  grpc::ResourceQuota quota("attention-server");
  quota.Resize(
      static_cast<std::size_t>(limits.max_receiving_bytes + limits.max_queued_bytes + kQuotaSlack));
  builder.SetResourceQuota(quota);
}

}  // namespace

GrpcServer::GrpcServer(const std::vector<Listener>& listeners, const ServiceContext& services)
    : services_(services),
      listening_(listeners),
      attention_(services_, streams_),
      session_(services_, streams_),
      layer_(services_, streams_),
      server_info_(services_),
      health_(
          {"", v1::AttentionService::service_full_name(), v1::SessionService::service_full_name(),
           v1::LayerService::service_full_name(), v1::ServerService::service_full_name()},
          services_),
      reflection_({v1::AttentionService::service_full_name(),
                   v1::SessionService::service_full_name(), v1::LayerService::service_full_name(),
                   v1::ServerService::service_full_name(),
                   grpc::health::v1::Health::service_full_name(),
                   grpc::reflection::v1::ServerReflection::service_full_name(),
                   "grpc.reflection.v1alpha.ServerReflection"}) {}

GrpcServer::~GrpcServer() {
  if (server_ != nullptr) Shutdown(absl::InfinitePast());
}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(
    const std::vector<Listener>& listeners, const ServiceContext& services) {
  std::unique_ptr<GrpcServer> server(new GrpcServer(listeners, services));
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

std::unique_ptr<GrpcServer> GrpcServer::StartWithoutAddress(const ServiceContext& services) {
  std::unique_ptr<GrpcServer> server(new GrpcServer({}, services));
  if (const absl::Status status = server->Listen(); !status.ok()) {
    services.warn(std::string(status.message()));
    return nullptr;
  }
  return server;
}

void GrpcServer::Admit(int fd) {
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
  connection.listener_fd = -1;
  connection.fd = fd;
  door_->HandleNewConnection(&connection);
}

absl::Status GrpcServer::Listen() {
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  ATTENTION_RETURN_IF_ERROR(listening_.AddTo(builder));
  if (!listening_.has_listeners()) {
    door_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
        grpc::InsecureServerCredentials());
  }
  builder.RegisterService(&attention_);
  builder.RegisterService(&session_);
  builder.RegisterService(&layer_);
  builder.RegisterService(&server_info_);
  builder.RegisterService(&health_);
  builder.RegisterService(&reflection_service_);
  BoundWhatIsReceived(services_.limits, builder);
  builder.SetMaxSendMessageSize(-1);  // what a request may ask for is bounded when it is decoded
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kMaxFrameBytes);
  SetKeepalive(services_.limits.keepalive_interval, builder);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, ResetWatch::kMaxConcurrentCalls);
  // gRPC 1.51 ends the whole connection, with everybody's calls on it, for metadata that is larger.
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  std::unique_ptr<grpc::ServerCompletionQueue> queue = builder.AddCompletionQueue();
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) {
    return absl::UnavailableError(
        "listen: gRPC cannot serve, expected a certificate with its key where there is TLS");
  }
  threads_ = std::make_unique<CompletionThreads>(
      std::move(queue), services_.limits.num_completion_threads,
      [&scheduler = services_.scheduler] { scheduler.ComputePending(); });
  attention_.Listen(threads_->queue());
  session_.Listen(threads_->queue());
  layer_.Listen(threads_->queue());
  server_info_.Listen(threads_->queue());
  health_.Listen(threads_->queue());
  reflection_service_.Listen(threads_->queue());
  health_.SetServing(true);
  if (!listening_.has_listeners()) return absl::OkStatus();
  user_servers_ = std::make_unique<UserServers>(
      services_, [](const ServiceContext& services) { return StartWithoutAddress(services); });
  listening_.Start([this](int fd) { return user_servers_->Take(fd); }, services_.connections,
                   services_.metrics, services_.warn, services_.listener_health,
                   [this] { UpdateHealth(); });
  return absl::OkStatus();
}

void GrpcServer::UpdateHealth() {
  const std::vector<DeviceStatus> devices = services_.devices();
  const bool has_device = std::any_of(devices.begin(), devices.end(),
                                      [](const DeviceStatus& device) { return device.is_used; });
  const bool is_reachable = services_.listener_health.WhyNotReady().empty();
  ForUserServers([](GrpcServer& server) { server.UpdateHealth(); });
  MutexLock lock(&mutex_);
  health_.SetServing(!is_draining_ && has_device && is_reachable);
}

void GrpcServer::EndStalled(absl::Time now) {
  streams_.EndStalled(now);
  ForUserServers([now](GrpcServer& server) { server.EndStalled(now); });
}

void GrpcServer::AnnounceDrain() {
  {
    MutexLock lock(&mutex_);
    is_draining_ = true;
  }
  ForUserServers([](GrpcServer& server) { server.AnnounceDrain(); });
  UpdateHealth();  // watchers are told, and others still may ask
}

void GrpcServer::BeginDrain() {
  AnnounceDrain();
  streams_.BeginDrain();
  ForUserServers([](GrpcServer& server) { server.streams_.BeginDrain(); });
}

void GrpcServer::Shutdown(absl::Time deadline) {
  CallsInFlight& calls = services_.calls_in_flight;
  // gRPC's own grace period waits for every call, health watches included, which never end.
  calls.AwaitNone(deadline);
  listening_.Stop();
  calls.EndListening();
  // Whatever is still to be computed is given up and answered while there is a queue to answer on.
  GiveUpWork();
  ForUserServers([](GrpcServer& server) { server.GiveUpWork(); });
  services_.scheduler.Stop();
  CloseConnections();
  ForUserServers([](GrpcServer& server) { server.CloseConnections(); });
  // Connections are gone, but the last events of their calls may not have been handled, and their
  // handlers begin more operations.
  calls.AwaitAllLeft();
  ForUserServers([](GrpcServer& server) { server.LetGo(); });
  user_servers_.reset();
  LetGo();
}

void GrpcServer::LetGo() {
  threads_.reset();
  server_.reset();
}

void GrpcServer::CloseConnections() {
  // A peer that does not read keeps gRPC's last write to it, and with that gRPC's shutdown, waiting
  // for as long as it likes, by TCP for 20 s. So its socket is cut from below.
  absl::Notification are_closed;
  std::thread cutter([&] {
    if (!are_closed.WaitForNotificationWithTimeout(kClosingGrace + kCuttingGrace)) {
      services_.connections.CloseAll();
    }
  });
  server_->Shutdown(absl::ToChronoTime(absl::Now() + kClosingGrace));
  server_->Wait();
  are_closed.Notify();
  cutter.join();
}

}  // namespace attention::server
