#include "server/admin_pages.h"

#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "server/base/process_memory.h"
#include "server/observe/metrics_page.h"
#include "server/tenant_wiring.h"

namespace attention::server {
namespace {

std::vector<Gauge> GaugesOf(ServerState& state) {
  return {
      {"kv_capacity_bytes", "Bytes for KV pages",
       [&state] { return static_cast<double>(state.caches.capacity_bytes()); }},
      {"kv_used_bytes", "Bytes of KV pages in use",
       [&state] { return static_cast<double>(state.caches.used_bytes()); }},
      {"kv_spilled_bytes", "Bytes of KV pages of idle sessions in host memory",
       [&state] { return static_cast<double>(state.spilled_bytes()); }},
      {"sessions", "Live sessions",
       [&state] { return static_cast<double>(state.sessions.num_sessions()); }},
      {"layers", "Registered layers",
       [&state] { return static_cast<double>(state.layers.num_layers()); }},
      {"layer_bytes", "Bytes of layers' weights, those being uploaded or still in use included",
       [&state] { return static_cast<double>(state.layers.weight_bytes()); }},
      {"connections", "Open connections of gRPC clients",
       [&state] { return static_cast<double>(state.connections.count()); }},
      {"shared_memory_bytes", "Shared memory of clients, until its pages are freed",
       [&state] { return static_cast<double>(state.regions.bytes()); }},
      {"shared_memory_regions", "Regions of that",
       [&state] { return static_cast<double>(state.regions.num_regions()); }},
      {"receiving_bytes", "Bytes of requests that have not wholly come",
       [&state] { return static_cast<double>(state.receiving.bytes()); }},
      {"resident_memory_bytes", "Memory of this process that lies in the machine's",
       [] { return static_cast<double>(ResidentBytes()); }},
      {"open_calls", "Calls that have come and that gRPC has not done with, streams included",
       [&state] { return static_cast<double>(state.calls_in_flight.num_open()); }},
      {"open_streams", "Those of them that are streams",
       [&state] { return static_cast<double>(state.calls_in_flight.num_streams()); }},
      {"queued_requests", "Requests waiting for a worker",
       [&state] { return static_cast<double>(state.scheduler.load().requests); }},
      {"queued_bytes", "Bytes of tensors waiting for a worker",
       [&state] { return static_cast<double>(state.scheduler.load().bytes); }},
      {"result_bytes", "Bytes of large results, from admission until their clients have read them",
       [&state] { return static_cast<double>(state.results.bytes()); }},
      {"queued_work_seconds", "Estimated computing time waiting for a worker",
       [&state] { return absl::ToDoubleSeconds(state.scheduler.load().work); }},
  };
}

// Empty when the server takes work.
std::string WhyNotReady(const ServerState& state) {
  if (state.is_draining.load()) return "draining";
  if (!state.IsAnyDeviceUsable()) return "no device can be used";
  return state.listener_health.WhyNotReady();
}

}  // namespace

AdminServer::Pages MakeAdminPages(ServerState& state) {
  return {
      [&metrics = state.metrics, gauges = GaugesOf(state), of_tenants = TenantMetrics(state)](
          std::string_view accept) { return RenderMetrics(metrics, gauges, accept, of_tenants); },
      [&state] { return WhyNotReady(state); },
      [&state] { return state.listener_health.WhyNotAlive(); }};
}

}  // namespace attention::server
