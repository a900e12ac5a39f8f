#include "server/cache/spill_policy.h"

#include <algorithm>

namespace attention::server {

std::vector<std::size_t> ChooseSpills(std::span<const SpillCandidate> candidates,
                                      std::size_t needed, absl::Time now,
                                      const SpillLimits& limits) {
  std::vector<std::size_t> idle;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const bool is_idle = now - candidates[i].last_used >= limits.min_idle;
    if (is_idle && candidates[i].bytes > 0) idle.push_back(i);
  }
  std::stable_sort(idle.begin(), idle.end(), [&](std::size_t a, std::size_t b) {
    const SpillCandidate &first = candidates[a], &second = candidates[b];
    return first.last_used != second.last_used ? first.last_used < second.last_used
                                               : first.bytes > second.bytes;
  });
  std::vector<std::size_t> chosen;
  std::size_t host_bytes = limits.host_bytes, gained = 0;
  for (const std::size_t i : idle) {
    if (candidates[i].bytes > host_bytes) continue;
    host_bytes -= candidates[i].bytes;
    gained += candidates[i].bytes;
    chosen.push_back(i);
  }
  if (gained < needed) chosen.clear();
  return chosen;
}

}  // namespace attention::server
