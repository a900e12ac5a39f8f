#include "server/engine/kept_tokens.h"

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// The entries of one layer: for all heads, or by head.
struct EntriesOfLayer {
  std::size_t first = 0;  // the first one's index
  const KeptTokens* all = nullptr;
  std::map<int, const KeptTokens*> by_head;
};

std::string FieldOf(std::size_t index) { return absl::StrCat("keep[", index, "]"); }

absl::Status AddEntry(const KeptTokens& kept, std::size_t index, const KvCache& cache, int layer,
                      std::map<int, EntriesOfLayer>& layers) {
  const auto [it, is_first] = layers.try_emplace(layer);
  EntriesOfLayer& entries = it->second;
  if (is_first) entries.first = index;
  if (cache.shape().layer(layer).has_window()) {
    return absl::InvalidArgumentError(absl::StrCat(
        FieldOf(index), " is about layer ", layer,
        ", which has a window, expected layers without: a window lets tokens go by itself"));
  }
  const int num_heads = cache.geometry(layer).num_kv_heads;
  if (kept.kv_head && *kept.kv_head >= num_heads) {
    return absl::InvalidArgumentError(absl::StrCat(FieldOf(index), ".kv_head is ", *kept.kv_head,
                                                   ", expected 0 to ", num_heads - 1));
  }
  const bool is_free =
      kept.kv_head ? entries.all == nullptr && !entries.by_head.contains(*kept.kv_head) : is_first;
  if (!is_free) {
    return absl::InvalidArgumentError(absl::StrCat(FieldOf(index), " is about layer ", layer,
                                                   ", as ", FieldOf(entries.first),
                                                   " is, expected tokens of a layer or of each of "
                                                   "its heads, once"));
  }
  const std::int64_t num_held = cache.num_held(layer);
  if (kept.num_tokens != num_held) {
    return TokensMismatch(absl::StrCat(FieldOf(index), ".num_tokens is ", kept.num_tokens), layer,
                          num_held);
  }
  if (kept.kv_head) {
    entries.by_head[*kept.kv_head] = &kept;
  } else {
    entries.all = &kept;
  }
  return absl::OkStatus();
}

// To the layer that it names, or to all.
absl::Status AddToLayers(const KeptTokens& kept, std::size_t index, const KvCache& cache,
                         std::map<int, EntriesOfLayer>& layers) {
  if (kept.layer && *kept.layer >= cache.num_layers()) {
    return absl::InvalidArgumentError(absl::StrCat(FieldOf(index), ".layer is ", *kept.layer,
                                                   ", expected 0 to ", cache.num_layers() - 1));
  }
  const int begin = kept.layer.value_or(0);
  const int end = kept.layer ? begin + 1 : cache.num_layers();
  for (int layer = begin; layer < end; ++layer) {
    ATTENTION_RETURN_IF_ERROR(AddEntry(kept, index, cache, layer, layers));
  }
  return absl::OkStatus();
}

absl::StatusOr<LayerKeep> ResolveLayer(int layer, const EntriesOfLayer& entries, int num_heads) {
  LayerKeep keep{layer, 0, {}};
  if (entries.all != nullptr) {
    keep.tokens = {entries.all->tokens};
    return keep;
  }
  if (static_cast<int>(entries.by_head.size()) != num_heads) {
    return absl::InvalidArgumentError(
        absl::StrCat(FieldOf(entries.first), " names a head of layer ", layer, ", where ",
                     entries.by_head.size(), " heads have entries, expected all ", num_heads));
  }
  for (const auto& [head, kept] : entries.by_head) {
    keep.tokens.push_back(kept->tokens);
    if (keep.tokens.back().size() == keep.tokens[0].size()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("KV head ", head, " of layer ", layer, " keeps ", keep.tokens.back().size(),
                     " tokens, expected ", keep.tokens[0].size(), ", as many as head 0 keeps"));
  }
  return keep;
}

}  // namespace

absl::Status TokensMismatch(absl::string_view what, int layer, std::int64_t num_held) {
  return ReasonedError(absl::StatusCode::kFailedPrecondition, ErrorReason::kPositionMismatch,
                       absl::StrCat(what, ", but layer ", layer, " holds ", num_held, " tokens"),
                       {{"actual_tokens", absl::StrCat(num_held)}});
}

absl::StatusOr<std::vector<LayerKeep>> ResolveKeep(std::span<const KeptTokens> kept,
                                                   const KvCache& cache) {
  std::map<int, EntriesOfLayer> layers;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    ATTENTION_RETURN_IF_ERROR(AddToLayers(kept[i], i, cache, layers));
  }
  std::vector<LayerKeep> resolved;
  for (const auto& [layer, entries] : layers) {
    ATTENTION_ASSIGN_OR_RETURN(LayerKeep keep,
                               ResolveLayer(layer, entries, cache.geometry(layer).num_kv_heads));
    resolved.push_back(std::move(keep));
  }
  return resolved;
}

}  // namespace attention::server
