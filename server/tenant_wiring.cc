#include "server/tenant_wiring.h"

#include <spdlog/spdlog.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "server/config/limits_file.h"
#include "server/observe/tenant_metrics.h"

namespace attention::server {
namespace {

// Tenants beside the listed ones that have lines of their own in each family.
constexpr std::size_t kMaxUnlistedLines = 32;

using Amounts = std::map<std::string, std::int64_t>;

LabelledMetric TenantGauge(ServerState& state, const std::string& name, const std::string& help,
                           std::function<Amounts()> read) {
  return {
      "tenant_" + name, help, LabelledMetric::Kind::kGauge, [&state, read = std::move(read)] {
        const auto limits = state.tenant_limits.all();
        std::vector<LabelledValue> values;
        for (const auto& [tenant, amount] : BoundedByTenant(
                 read(), [&](const std::string& name) { return limits->listed.count(name) > 0; },
                 kMaxUnlistedLines)) {
          values.push_back({{{"tenant", tenant}}, static_cast<double>(amount)});
        }
        return values;
      }};
}

// The table bounds the names itself, and so that no line ever ends.
std::vector<LabelledValue> Refusals(const TenantLimitsTable& limits) {
  std::vector<LabelledValue> values;
  for (const auto& [tenant, counts] : limits.refusals()) {
    for (int limit = 0; limit < kNumTenantLimits; ++limit) {
      if (counts[limit] == 0) continue;
      const std::string key(TenantLimitKey(static_cast<TenantLimit>(limit)));
      values.push_back({{{"tenant", tenant.empty() ? kOtherTenants : tenant}, {"limit", key}},
                        static_cast<double>(counts[limit])});
    }
  }
  return values;
}

}  // namespace

TenantLimits DefaultTenantLimits(const ServerConfig& config, std::int64_t kv_capacity_bytes,
                                 std::int64_t layer_capacity_bytes) {
  TenantLimits limits;
  limits.kv_bytes = DefaultTenantPart(kv_capacity_bytes);
  limits.layer_bytes = DefaultTenantPart(layer_capacity_bytes);
  limits.sessions = config.max_sessions_per_tenant > 0 ? config.max_sessions_per_tenant
                                                       : DefaultTenantPart(config.max_sessions);
  limits.streams = DefaultTenantPart(config.max_calls);
  return limits;
}

absl::StatusOr<TenantLimitsSet> ConfiguredTenantLimits(const ServerConfig& config,
                                                       const TenantLimits& defaults) {
  if (config.tenant_limits.empty()) return TenantLimitsSet{defaults, {}};
  return ReadLimitsFile(config.tenant_limits, defaults);
}

void ReloadTenantLimits(ServerState& state) {
  if (state.config.tenant_limits.empty()) return;
  absl::StatusOr<TenantLimitsSet> limits =
      ConfiguredTenantLimits(state.config, state.default_tenant_limits);
  if (!limits.ok()) {
    spdlog::error("the limits of tenants stay as they are: {}",
                  std::string(limits.status().message()));
    return;
  }
  const std::size_t num_listed = limits->listed.size();
  state.tenant_limits.Replace(*std::move(limits));
  spdlog::info("read {} again: limits of {} tenants, and of all others", state.config.tenant_limits,
               num_listed);
}

std::vector<LabelledMetric> TenantMetrics(ServerState& state) {
  return {
      TenantGauge(state, "kv_bytes", "Bytes of KV pages on devices by tenant",
                  [&state] { return state.kv_bytes_of_tenants.ByTenant(); }),
      TenantGauge(state, "layer_bytes", "Bytes of layers' weights by tenant, without the server's",
                  [&state] { return state.layers.weight_bytes_by_tenant(); }),
      TenantGauge(state, "sessions", "Live sessions by tenant",
                  [&state] { return state.sessions.sessions_by_tenant(); }),
      TenantGauge(state, "streams", "Open streams by tenant",
                  [&state] { return state.streams_of_tenants.ByTenant(); }),
      TenantGauge(state, "queued_bytes", "Bytes of tensors waiting for a worker by tenant",
                  [&state] { return state.scheduler.queued_bytes_by_tenant(); }),
      {"tenant_refusals_total", "Calls and steps refused by a limit of their tenant",
       LabelledMetric::Kind::kCounter, [&state] { return Refusals(state.tenant_limits); }},
  };
}

}  // namespace attention::server
