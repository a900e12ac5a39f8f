#include "server/observe/tenant_metrics.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace attention::server {

std::map<std::string, std::int64_t> BoundedByTenant(
    const std::map<std::string, std::int64_t>& amounts,
    const std::function<bool(const std::string&)>& is_listed, std::size_t max_unlisted) {
  std::map<std::string, std::int64_t> bounded;
  std::vector<std::pair<std::int64_t, std::string>> unlisted;
  for (const auto& [tenant, amount] : amounts) {
    if (tenant.empty()) {
      bounded[kOtherTenants] += amount;
    } else if (is_listed(tenant)) {
      bounded[tenant] += amount;
    } else {
      unlisted.emplace_back(-amount, tenant);
    }
  }
  std::sort(unlisted.begin(), unlisted.end());
  for (std::size_t i = 0; i < unlisted.size(); ++i) {
    bounded[i < max_unlisted ? unlisted[i].second : kOtherTenants] -= unlisted[i].first;
  }
  return bounded;
}

}  // namespace attention::server
