#include "server/engine/cache_changes.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/cache/kv_cache.h"
#include "server/domain/step_resolution.h"
#include "server/engine/kept_tokens.h"

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

// The first row behind those that are accepted is `last` + 1.
absl::Status CheckAccepted(std::int64_t last, std::int64_t committed) {
  if (last < committed) return absl::OkStatus();
  return ReasonedError(absl::StatusCode::kFailedPrecondition, ErrorReason::kPositionMismatch,
                       absl::StrCat("the last of accepted is the token at position ", last,
                                    ", expected one before the committed length ", committed),
                       {{"actual_position", absl::StrCat(committed)}});
}

// Positions from `length` on are told apart in all layers that are longer.
absl::Status CheckCompaction(const KvCache& cache, std::int64_t length) {
  for (int layer = 0; layer < cache.num_layers(); ++layer) {
    const LayerTokens tokens = cache.tokens(layer);
    if (tokens.length <= length || length >= tokens.compacted_length) continue;
    return TokensDropped(absl::StrCat("length is ", length), tokens.compacted_length);
  }
  return absl::OkStatus();
}

absl::Status CheckWriters(const CacheChange& change) {
  for (std::size_t i = 0; i < change.writers.size(); ++i) {
    ATTENTION_RETURN_IF_ERROR(change.caches[i]->CheckWriter(change.writers[i]));
  }
  return absl::OkStatus();
}

bool IsRemembered(CacheChange::Kind kind) {
  return kind == CacheChange::Kind::kTruncate || kind == CacheChange::Kind::kReorder ||
         kind == CacheChange::Kind::kKeep;
}

// A repetition, whose answer got lost.
bool IsDone(const CacheChange& change) {
  return change.change_id != 0 &&
         std::all_of(change.caches.begin(), change.caches.end(),
                     [&](const auto& cache) { return cache->last_change() == change.change_id; });
}

absl::Status Fork(const CacheChange& change) {
  KvCache& cache = *change.caches[0];
  const std::int64_t committed = cache.committed_length();
  const std::int64_t length = change.length.value_or(committed);
  ATTENTION_RETURN_IF_ERROR(CheckLength(length, committed));
  ATTENTION_RETURN_IF_ERROR(CheckWindows(cache, length));
  ATTENTION_RETURN_IF_ERROR(CheckCompaction(cache, length));
  for (const auto& copy : change.copies) cache.ForkTo(*copy, length);
  return absl::OkStatus();
}

StoredRowsTask TaskOf(const RowsTransfer& transfer, const KvCache& cache) {
  return {cache.geometry(transfer.layer), cache.View(transfer.layer), transfer.begin,
          transfer.num_tokens, transfer.rows};
}

absl::Status Read(const RowsTransfer& read, const KvCache& cache, AttentionBackend& backend) {
  const std::int64_t num_held = cache.num_held(read.layer);
  if (read.begin + read.num_tokens > num_held) {
    return TokensMismatch(absl::StrCat("end is ", read.begin + read.num_tokens), read.layer,
                          num_held);
  }
  const LayerTokens tokens = cache.tokens(read.layer);
  if (read.begin < tokens.first_position && read.begin + read.num_tokens > tokens.sink_end) {
    return WindowDropped(absl::StrCat("begin is ", read.begin), tokens.first_position);
  }
  if (read.checksums != nullptr) {
    *read.checksums = cache.Checksums(read.layer, read.begin, read.begin + read.num_tokens);
  }
  const StoredRowsTask task = TaskOf(read, cache);
  return backend.ReadRows({&task, 1});
}

absl::Status Write(const RowsTransfer& write, KvCache& cache, AttentionBackend& backend,
                   Spiller* spiller) {
  const std::int64_t num_held = cache.num_held(write.layer);
  if (write.begin != num_held) {
    return TokensMismatch(absl::StrCat("begin is ", write.begin), write.layer, num_held);
  }
  const std::int64_t length = cache.length(write.layer) + write.num_tokens;
  ATTENTION_RETURN_IF_ERROR(spiller != nullptr ? spiller->Extend(cache, write.layer, length)
                                               : cache.Extend(write.layer, length));
  const StoredRowsTask task = TaskOf(write, cache);
  ATTENTION_RETURN_IF_ERROR(backend.WriteRows({&task, 1}));
  cache.Append(write.layer, *write.checksums);
  return absl::OkStatus();
}

absl::Status Keep(KvCache& cache, std::span<const LayerKeep> keep, PageTables::Positions positions,
                  AttentionBackend& backend, Spiller* spiller) {
  return spiller != nullptr ? spiller->Keep(cache, keep, positions)
                            : cache.Keep(backend, keep, positions);
}

absl::Status Truncate(const CacheChange& change, AttentionBackend& backend, Spiller* spiller) {
  KvCache& cache = *change.caches[0];
  const std::int64_t length = *change.length;
  const std::int64_t committed = cache.committed_length();
  ATTENTION_RETURN_IF_ERROR(CheckLength(length, committed));
  ATTENTION_RETURN_IF_ERROR(CheckWindows(cache, length));
  ATTENTION_RETURN_IF_ERROR(CheckCompaction(cache, length));
  if (change.accepted.empty()) {
    cache.Truncate(length);
    return absl::OkStatus();
  }
  ATTENTION_RETURN_IF_ERROR(CheckAccepted(length + change.accepted.back(), committed));
  std::vector<LayerKeep> keep;
  for (int layer = 0; layer < cache.num_layers(); ++layer) {
    // At length 0 a layer could begin anew, but without tokens from later on.
    if (length < cache.first_position(layer)) {
      return WindowDropped(absl::StrCat("length is ", length), cache.first_position(layer));
    }
    const std::int64_t prefix = length - cache.tokens(layer).num_dropped;
    std::vector<std::int64_t> tokens;
    for (const std::int64_t accepted : change.accepted) tokens.push_back(prefix + accepted);
    keep.push_back({layer, prefix, {std::move(tokens)}});
  }
  return Keep(cache, keep, PageTables::Positions::kFollow, backend, spiller);
}

absl::Status Apply(const CacheChange& change, AttentionBackend& backend, Spiller* spiller) {
  KvCache& cache = *change.caches[0];
  switch (change.kind) {
    case CacheChange::Kind::kReorder:
      KvCache::Reorder(change.caches, change.sources);
      return absl::OkStatus();
    case CacheChange::Kind::kAttach:
      cache.set_writer(change.writers[0]);
      return absl::OkStatus();
    case CacheChange::Kind::kTruncate:
      return Truncate(change, backend, spiller);
    case CacheChange::Kind::kFork:
      return Fork(change);
    case CacheChange::Kind::kKeep: {
      ATTENTION_ASSIGN_OR_RETURN(const std::vector<LayerKeep> keep,
                                 ResolveKeep(change.keep, cache));
      return Keep(cache, keep, PageTables::Positions::kStay, backend, spiller);
    }
    case CacheChange::Kind::kRead:
      return Read(*change.rows, cache, backend);
    case CacheChange::Kind::kWrite:
      return Write(*change.rows, cache, backend, spiller);
  }
  return absl::InternalError("a change of no kind");
}

}  // namespace

absl::Status ApplyChange(const CacheChange& change, AttentionBackend& backend, Spiller* spiller) {
  ATTENTION_RETURN_IF_ERROR(CheckWriters(change));
  if (IsDone(change)) return absl::OkStatus();
  ATTENTION_RETURN_IF_ERROR(Apply(change, backend, spiller));
  if (!IsRemembered(change.kind)) return absl::OkStatus();
  for (const auto& cache : change.caches) cache->set_last_change(change.change_id);
  return absl::OkStatus();
}

}  // namespace attention::server
