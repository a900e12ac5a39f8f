#include "server/domain/computed_share.h"

#include <cstddef>

namespace attention::server {

double ComputedShare(const AttentionRequest& request, const AttentionResult& result) {
  if (!result.status.ok()) return 0;
  if (request.steps.empty()) return 1;
  absl::Duration all;
  absl::Duration computed;
  double num_computed = 0;
  for (std::size_t i = 0; i < request.steps.size(); ++i) {
    all += request.steps[i].work;
    if (!result.steps[i].status.ok()) continue;
    computed += request.steps[i].work;
    ++num_computed;
  }
  if (all > absl::ZeroDuration()) return absl::FDivDuration(computed, all);
  return num_computed / static_cast<double>(request.steps.size());
}

}  // namespace attention::server
