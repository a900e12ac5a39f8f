#include "client/internal/targets/targets.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/internal/credentials/channel_credentials.h"
#include "client/internal/credentials/target_address.h"
#include "client/internal/targets/target_probe.h"

namespace attention::client::internal {
namespace {

// gRPC's own reconnect back-off starts at a second, longer than all our retries together; a
// restarted server should be found again by them.
constexpr int kInitialReconnectBackoffMs = 50;
constexpr int kMaxReconnectBackoffMs = 500;
// How long an attempt to connect may take.
constexpr int kConnectTimeoutMs = 2000;

// The largest that HTTP/2 allows, as the server has it: a tensor then travels in a few frames.
constexpr int kMaxFrameBytes = 16777215;

// How long it may take to find out why there is no connection: no longer than was waited for one.
constexpr absl::Duration kMinProbeTime = absl::Milliseconds(100);
constexpr absl::Duration kMaxProbeTime = absl::Seconds(3);

grpc::ChannelArguments MakeArguments(const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(static_cast<int>(options.max_message_bytes));
  arguments.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kMaxFrameBytes);
  // Channels with equal arguments would otherwise share one connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // The retry loop retries; gRPC's would keep a second copy of each request for it.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kInitialReconnectBackoffMs);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectBackoffMs);
  if (options.keepalive_interval != absl::InfiniteDuration()) {
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS,
                     static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_interval)));
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                     static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_timeout)));
    arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0);
    // gRPC would stop after two pings without data between them; a call may compute for longer.
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  }
  if (options.tls.has_value() && !options.tls->server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.tls->server_name);
  }
  arguments.SetUserAgentPrefix("attention-client/" ATTENTION_CLIENT_VERSION);
  return arguments;
}

// An environment's proxy is no way to this host itself, and would see what is sent in the clear.
grpc::ChannelArguments ArgumentsFor(const std::string& address, grpc::ChannelArguments arguments) {
  if (IsOnThisHost(address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

}  // namespace

Targets::Targets(const ClientOptions& options) : tls_(options.tls) {
  const auto credentials = MakeChannelCredentials(tls_);
  const grpc::ChannelArguments shared_arguments = MakeArguments(options);
  for (const std::string& address : options.targets) {
    const grpc::ChannelArguments arguments = ArgumentsFor(address, shared_arguments);
    auto target = std::make_unique<Target>();
    target->address = address;
    for (int i = 0; i < options.num_channels; ++i) {
      target->endpoints.push_back(
          std::make_unique<Endpoint>(grpc::CreateCustomChannel(address, credentials, arguments)));
    }
    targets_.push_back(std::move(target));
  }
}

Endpoint& Targets::EndpointOf(std::size_t target) {
  Target& chosen = *targets_[target];
  return *chosen.endpoints[chosen.next_endpoint++ % chosen.endpoints.size()];
}

std::optional<std::size_t> Targets::TargetOf(const std::string& server_name) const {
  if (targets_.size() == 1) return 0;
  absl::MutexLock lock(&mutex_);
  const auto found = target_of_server_.find(server_name);
  if (found == target_of_server_.end()) return std::nullopt;
  return found->second;
}

void Targets::Learn(const std::string& server_name, std::size_t target) {
  if (targets_.size() == 1 || server_name.empty()) return;
  absl::MutexLock lock(&mutex_);
  target_of_server_[server_name] = target;
}

absl::Status Targets::WaitUntilReady(absl::Time deadline) {
  const absl::Duration patience = std::clamp(deadline - absl::Now(), kMinProbeTime, kMaxProbeTime);
  for (const auto& target : targets_) {
    for (const auto& endpoint : target->endpoints) {
      if (!endpoint->channel->WaitForConnected(absl::ToChronoTime(deadline))) {
        return absl::DeadlineExceededError(
            absl::StrCat("no connection to ", target->address,
                         " in time: ", DiagnoseTarget(target->address, tls_, patience)));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace attention::client::internal
