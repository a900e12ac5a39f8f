#include "server/rpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace attention::server {
namespace {

// One message of a stream is one frame's worth of system calls: the largest frame HTTP/2 allows cut
// latency of 1 MiB messages by a tenth to a fifth on TCP and did nothing worse elsewhere.
constexpr int kMaxFrameBytes = 16777215;

// One is the fastest for a lone caller; the second keeps the others' calls moving while the first
// copies tensors.
constexpr int kCompletionThreads = 2;

// After the last of our calls is done: time for its answer to leave before connections are closed.
constexpr absl::Duration kClosingGrace = absl::Milliseconds(250);

// "127.0.0.1:0" and 50051 give "127.0.0.1:50051".
std::string WithPort(const std::string& address, int port) {
  if (absl::StartsWith(address, "unix:")) return address;
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

}  // namespace

GrpcServer::GrpcServer(const ServiceContext& services)
    : services_(services),
      attention_(services_, streams_),
      session_(services_, streams_),
      server_info_(services_) {}

GrpcServer::~GrpcServer() {
  if (server_ != nullptr) Shutdown(absl::InfinitePast());
}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(
    const std::vector<std::string>& addresses, const ServiceContext& services) {
  std::unique_ptr<GrpcServer> server(new GrpcServer(services));
  if (absl::Status status = server->Listen(addresses); !status.ok()) return status;
  return server;
}

absl::Status GrpcServer::Listen(const std::vector<std::string>& addresses) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  std::vector<int> ports(addresses.size(), -1);
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    builder.AddListeningPort(addresses[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterService(&attention_);
  builder.RegisterService(&session_);
  builder.RegisterService(&server_info_);
  const auto max_bytes = static_cast<int>(
      std::min<std::int64_t>(services_.limits.max_message_bytes, std::numeric_limits<int>::max()));
  builder.SetMaxReceiveMessageSize(max_bytes);
  builder.SetMaxSendMessageSize(-1);  // what a request may ask for is bounded when it is decoded
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kMaxFrameBytes);
  // A second server on the same port would otherwise share it in silence.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  std::unique_ptr<grpc::ServerCompletionQueue> queue = builder.AddCompletionQueue();
  server_ = builder.BuildAndStart();
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    if (server_ != nullptr && ports[i] > 0) {
      addresses_.push_back(WithPort(addresses[i], ports[i]));
      continue;
    }
    return absl::UnavailableError(absl::StrCat("listen: cannot bind ", addresses[i],
                                               ", expected a free host:port or unix:path"));
  }
  threads_ = std::make_unique<CompletionThreads>(std::move(queue), kCompletionThreads);
  attention_.Listen(threads_->queue());
  session_.Listen(threads_->queue());
  // A service is known to the health service once it has a status of its own; "" is the server.
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  for (const char* service :
       {"", v1::AttentionService::service_full_name(), v1::SessionService::service_full_name(),
        v1::ServerService::service_full_name()}) {
    health->SetServingStatus(service, true);
  }
  return absl::OkStatus();
}

void GrpcServer::BeginDrain() {
  // Not HealthCheckServiceInterface::Shutdown: watchers are told, and still may ask.
  server_->GetHealthCheckService()->SetServingStatus(false);
  streams_.BeginDrain();
}

void GrpcServer::Shutdown(absl::Time deadline) {
  // gRPC's own grace period waits for every call, health watches included, which never end.
  services_.calls_in_flight.AwaitNone(deadline);
  server_->Shutdown(absl::ToChronoTime(std::min(deadline, absl::Now() + kClosingGrace)));
  server_->Wait();
  threads_.reset();
  server_.reset();
}

}  // namespace attention::server
