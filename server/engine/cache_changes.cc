#include "server/engine/cache_changes.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/cache/kv_cache.h"
#include "server/domain/step_resolution.h"

namespace attention::server {
namespace {

absl::Status CheckLength(std::int64_t length, std::int64_t committed) {
  if (length <= committed) return absl::OkStatus();
  return ReasonedError(
      absl::StatusCode::kFailedPrecondition, ErrorReason::kPositionMismatch,
      absl::StrCat("length is ", length, ", expected at most the committed length ", committed),
      {{"actual_position", absl::StrCat(committed)}});
}

// Names the layer that has let go most.
absl::Status CheckWindows(const KvCache& cache, std::int64_t length) {
  std::optional<int> worst;
  const auto least = [&](int layer) {
    return cache.first_position(layer) + cache.shape().layer(layer).window_tokens;
  };
  for (int layer = 0; layer < cache.num_layers(); ++layer) {
    if (cache.CanGoOnAt(layer, length)) continue;
    if (!worst || least(layer) > least(*worst)) worst = layer;
  }
  if (!worst) return absl::OkStatus();
  return WindowDropped(absl::StrCat("length is ", length, ", expected 0 or at least ",
                                    least(*worst), " for layer ", *worst),
                       cache.first_position(*worst));
}

absl::Status CheckWriters(const CacheChange& change) {
  for (std::size_t i = 0; i < change.writers.size(); ++i) {
    ATTENTION_RETURN_IF_ERROR(change.caches[i]->CheckWriter(change.writers[i]));
  }
  return absl::OkStatus();
}

void Reorder(const CacheChange& change) {
  // A repetition, whose answer got lost.
  const bool is_done = change.reorder_id != 0 &&
                       std::all_of(change.caches.begin(), change.caches.end(), [&](const auto& c) {
                         return c->last_reorder() == change.reorder_id;
                       });
  if (is_done) return;
  KvCache::Reorder(change.caches, change.sources);
  for (const auto& cache : change.caches) cache->set_last_reorder(change.reorder_id);
}

}  // namespace

absl::Status ApplyChange(const CacheChange& change) {
  ATTENTION_RETURN_IF_ERROR(CheckWriters(change));
  if (change.kind == CacheChange::Kind::kReorder) {
    Reorder(change);
    return absl::OkStatus();
  }
  KvCache& cache = *change.caches[0];
  if (change.kind == CacheChange::Kind::kAttach) {
    cache.set_writer(change.writers[0]);
    return absl::OkStatus();
  }
  const std::int64_t committed = cache.committed_length();
  const std::int64_t length = change.length.value_or(committed);
  ATTENTION_RETURN_IF_ERROR(CheckLength(length, committed));
  ATTENTION_RETURN_IF_ERROR(CheckWindows(cache, length));
  if (change.kind == CacheChange::Kind::kTruncate) {
    cache.Truncate(length);
    return absl::OkStatus();
  }
  for (const auto& copy : change.copies) cache.ForkTo(*copy, length);
  return absl::OkStatus();
}

}  // namespace attention::server
