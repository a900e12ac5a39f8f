#include "server/engine/spiller.h"

#include <utility>

#include "server/base/status_macros.h"
#include "server/cache/spill_policy.h"

namespace attention::server {

absl::Status Spiller::Hold(KvCache& cache) {
  if (cache.is_spilled()) {
    ATTENTION_RETURN_IF_ERROR(
        WithRoom(cache, cache.SpilledBytes(), [&] { return cache.Restore(backend_); }));
    metrics_.sessions_restored.Add();
  }
  cache.Pin(clock_.Now());
  return absl::OkStatus();
}

absl::Status Spiller::Extend(KvCache& cache, int layer, std::int64_t new_length) {
  ATTENTION_RETURN_IF_ERROR(
      WithRoom(cache, cache.CopyBytes(layer), [&] { return cache.OwnTail(backend_, layer); }));
  return WithRoom(cache, cache.MissingBytes(layer, new_length),
                  [&] { return cache.Extend(layer, new_length); });
}

absl::Status Spiller::Keep(KvCache& cache, std::span<const LayerKeep> keep,
                           PageTables::Positions positions) {
  return WithRoom(cache, cache.KeepBytes(keep),
                  [&] { return cache.Keep(backend_, keep, positions); });
}

absl::Status Spiller::SpillIfItFits(KvCache& victim, bool* is_spilled) {
  absl::Status status = victim.Spill(backend_, host_pages_);
  *is_spilled = status.ok();
  if (status.ok()) metrics_.sessions_spilled.Add();
  // Chunks of pages of other sizes may fit less than was counted.
  return status.code() == absl::StatusCode::kResourceExhausted ? absl::OkStatus() : status;
}

absl::Status Spiller::MakeRoomForOwner(const KvCache& cache, std::size_t bytes) {
  const std::size_t excess = cache.ExcessBytes(bytes);
  if (excess == 0) return absl::OkStatus();
  for (const std::shared_ptr<KvCache>& victim : ChooseVictims(excess, &cache)) {
    bool is_spilled = false;
    ATTENTION_RETURN_IF_ERROR(SpillIfItFits(*victim, &is_spilled));
    if (cache.ExcessBytes(bytes) == 0) break;
  }
  return absl::OkStatus();
}

absl::Status Spiller::WithRoom(const KvCache& cache, std::size_t bytes,
                               absl::FunctionRef<absl::Status()> attempt) {
  ATTENTION_RETURN_IF_ERROR(MakeRoomForOwner(cache, bytes));
  absl::Status status = attempt();
  if (status.code() != absl::StatusCode::kResourceExhausted || cache.ExcessBytes(bytes) > 0) {
    return status;
  }
  for (const std::shared_ptr<KvCache>& victim : ChooseVictims(bytes)) {
    bool is_spilled = false;
    ATTENTION_RETURN_IF_ERROR(SpillIfItFits(*victim, &is_spilled));
    if (!is_spilled) continue;
    status = attempt();
    if (status.code() != absl::StatusCode::kResourceExhausted) return status;
  }
  return status;
}

std::vector<std::shared_ptr<KvCache>> Spiller::ChooseVictims(std::size_t bytes,
                                                             const KvCache* cache) const {
  std::vector<std::shared_ptr<KvCache>> idle;
  std::vector<SpillCandidate> candidates;
  for (std::shared_ptr<KvCache>& known : caches_.Alive()) {
    if (known->is_pinned() || known->is_spilled() || known->is_lost()) continue;
    if (cache != nullptr && !known->HasOwnerOf(*cache)) continue;
    // Those that have pages in common with others keep them on the device.
    const std::size_t bytes_freed = known->SpillableBytes();
    if (bytes_freed == 0) continue;
    candidates.push_back({bytes_freed, known->last_used()});
    idle.push_back(std::move(known));
  }
  // An owner's limit may be used up, however much the device has free.
  const std::size_t free = cache == nullptr ? pages_.free_bytes() : 0;
  const std::vector<std::size_t> chosen =
      ChooseSpills(candidates, bytes > free ? bytes - free : 1, clock_.Now(),
                   {min_idle_, host_pages_.capacity_bytes() - host_pages_.used_bytes()});
  std::vector<std::shared_ptr<KvCache>> victims;
  victims.reserve(chosen.size());
  for (const std::size_t i : chosen) victims.push_back(std::move(idle[i]));
  return victims;
}

}  // namespace attention::server
