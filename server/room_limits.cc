#include "server/room_limits.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/base/descriptors.h"

namespace attention::server {
namespace {

// Unless configured or planned: of devices with memory of their own half of what KV pages leave, on
// each.
std::int64_t LayerCapacity(const ServerConfig& config, const Devices& devices) {
  if (config.layer_capacity_bytes > 0) return config.layer_capacity_bytes;
  std::size_t least_free = static_cast<std::size_t>(-1);
  for (const auto& device : devices) {
    least_free = std::min(least_free, device->backend().memory().free_bytes());
  }
  return static_cast<std::int64_t>(least_free / 10 * devices.size());
}

}  // namespace

absl::Status CheckConnectionLimits(const ServerConfig& config) {
  const std::int64_t descriptors = DescriptorLimit();
  const std::int64_t largest = LargestMaxConnections(descriptors);
  if (config.max_connections <= largest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("max-connections is ", config.max_connections, ", expected at most ", largest,
                   ": this process may open ", descriptors, " files and sockets (ulimit -Hn)"));
}

// One is the fastest on two cores: a second costs 10 to 50 % of the latency of small calls, and up
// to half of the throughput of large ones, by taking a core from who computes or calls
// (tests/benchmark/transport, --study apis).
int NumCompletionThreads(const ServerConfig& config, const MachineLimits& limits) {
  if (config.completion_threads > 0) return config.completion_threads;
  const auto num_cpus = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, UsableCpus(limits, num_cpus) / 4);
}

Scheduler::Limits SchedulerLimits(const ServerConfig& config, TenantLimitsTable& tenants) {
  Scheduler::Limits limits;
  limits.queue = {config.max_queued_requests, config.max_queued_bytes};
  limits.policy.max_batch_requests = config.max_batch_requests;
  limits.policy.max_batch_work = config.max_batch_work;
  limits.policy.max_contended_batch_work = config.max_contended_batch_work;
  limits.policy.long_share = config.long_work_share;
  limits.policy.tenants.limits = &tenants;
  limits.policy.tenants.max_unlisted = config.max_active_tenants;
  limits.max_inline_work = config.max_inline_work;
  return limits;
}

SessionTable::Limits SessionLimits(const ServerConfig& config) {
  return {config.max_sessions, config.session_ttl, config.max_session_ttl};
}

LayerTable::Limits LayerLimits(const ServerConfig& config, const Devices& devices) {
  return {LayerCapacity(config, devices), config.max_layers_per_tenant,
          devices[0]->backend().info().no_projections, config.max_layers};
}

Connections::Limits ConnectionLimits(const ServerConfig& config) {
  const std::int64_t all = config.max_connections > 0 ? config.max_connections
                                                      : DefaultMaxConnections(DescriptorLimit());
  const std::int64_t per_peer = config.max_connections_per_peer > 0
                                    ? config.max_connections_per_peer
                                    : std::max<std::int64_t>(1, all / 2);
  return {static_cast<std::size_t>(all), static_cast<std::size_t>(per_peer)};
}

ReceivingLedger::Limits ReceivingLimits(const ServerConfig& config) {
  return {config.max_receiving_bytes, config.upload_stall_timeout};
}

RegionTable::Limits RegionLimits(const ServerConfig& config) {
  return {config.max_shared_bytes, config.max_shared_bytes_per_user,
          config.max_shared_bytes_per_connection, config.max_shared_regions,
          config.max_shared_regions_per_connection};
}

SharedMemoryChannels::Limits ChannelLimits(const ServerConfig& config) {
  return {config.max_shared_connections, config.max_shared_connections_per_user};
}

ServiceLimits LimitsOfServices(const ServerConfig& config) {
  ServiceLimits limits;
  limits.max_message_bytes = config.max_message_bytes;
  limits.max_response_bytes = config.max_response_bytes;
  limits.max_queued_requests = config.max_queued_requests;
  limits.max_queued_bytes = config.max_queued_bytes;
  limits.max_sessions = config.max_sessions;
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

}  // namespace attention::server
