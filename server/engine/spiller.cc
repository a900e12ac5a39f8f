#include "server/engine/spiller.h"

#include <utility>

#include "server/base/status_macros.h"
#include "server/cache/spill_policy.h"

namespace attention::server {

absl::Status Spiller::Hold(KvCache& cache) {
  if (cache.is_spilled()) {
    ATTENTION_RETURN_IF_ERROR(WithRoom(static_cast<std::size_t>(cache.kv_bytes()),
                                       [&] { return cache.Restore(backend_); }));
    metrics_.sessions_restored.Add();
  }
  cache.Pin(clock_.Now());
  return absl::OkStatus();
}

absl::Status Spiller::Extend(KvCache& cache, int layer, std::int64_t new_length) {
  return WithRoom(cache.MissingBytes(layer, new_length),
                  [&] { return cache.Extend(layer, new_length); });
}

absl::Status Spiller::WithRoom(std::size_t bytes, absl::FunctionRef<absl::Status()> attempt) {
  absl::Status status = attempt();
  if (status.code() != absl::StatusCode::kResourceExhausted) return status;
  for (const std::shared_ptr<KvCache>& victim : ChooseVictims(bytes)) {
    const absl::Status spilled = victim->Spill(backend_, host_pages_);
    // Chunks of pages of other sizes may fit less than was counted.
    if (spilled.code() == absl::StatusCode::kResourceExhausted) continue;
    ATTENTION_RETURN_IF_ERROR(spilled);
    metrics_.sessions_spilled.Add();
    status = attempt();
    if (status.code() != absl::StatusCode::kResourceExhausted) return status;
  }
  return status;
}

std::vector<std::shared_ptr<KvCache>> Spiller::ChooseVictims(std::size_t bytes) const {
  std::vector<std::shared_ptr<KvCache>> idle;
  std::vector<SpillCandidate> candidates;
  for (std::shared_ptr<KvCache>& cache : caches_.Alive()) {
    if (cache->is_pinned() || cache->is_spilled() || cache->is_lost()) continue;
    candidates.push_back({static_cast<std::size_t>(cache->kv_bytes()), cache->last_used()});
    idle.push_back(std::move(cache));
  }
  const std::size_t free = pages_.free_bytes();
  const std::vector<std::size_t> chosen =
      ChooseSpills(candidates, bytes > free ? bytes - free : 1, clock_.Now(),
                   {min_idle_, host_pages_.capacity_bytes() - host_pages_.used_bytes()});
  std::vector<std::shared_ptr<KvCache>> victims;
  victims.reserve(chosen.size());
  for (const std::size_t i : chosen) victims.push_back(std::move(idle[i]));
  return victims;
}

}  // namespace attention::server
