#include "server/scheduler/step_order.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"

namespace attention::server {

std::vector<LayerKey> LayersOf(const AttentionRequest& request) {
  std::vector<LayerKey> layers;
  layers.reserve(request.steps.size());
  for (const SessionStep& step : request.steps) layers.emplace_back(step.cache.get(), step.layer);
  // The copies of a fork are nobody's yet.
  if (request.change) {
    for (const auto& cache : request.change->caches) layers.emplace_back(cache.get(), kAllLayers);
  }
  return layers;
}

template <typename Predicate>
bool StepOrder::AnyPending(std::span<const LayerKey> layers, Predicate predicate) const {
  const auto is_pending = [&](const LayerKey& layer) {
    const auto it = pending_.find(layer);
    return it != pending_.end() && predicate(it->second);
  };
  return std::any_of(layers.begin(), layers.end(), [&](const LayerKey& layer) {
    const auto [cache, index] = layer;
    if (index != kAllLayers) return is_pending(layer) || is_pending({cache, kAllLayers});
    // The entry of all layers comes before those of each.
    for (auto it = pending_.lower_bound(layer); it != pending_.end() && it->first.first == cache;
         ++it) {
      if (predicate(it->second)) return true;
    }
    return false;
  });
}

bool StepOrder::FollowsLong(std::span<const LayerKey> layers) const {
  return AnyPending(layers, [](const Pending& pending) { return pending.num_long > 0; });
}

bool StepOrder::MayBeginLong(std::span<const LayerKey> layers) const {
  return !AnyPending(layers, [](const Pending& pending) { return pending.num_short > 0; });
}

void StepOrder::Add(std::span<const LayerKey> layers, bool is_long) {
  std::size_t num_added = 0;
  absl::Cleanup undo = [&] { Remove(layers.first(num_added), is_long); };
  for (; num_added < layers.size(); ++num_added) Count(layers[num_added], is_long, 1);
  std::move(undo).Cancel();
}

void StepOrder::Remove(std::span<const LayerKey> layers, bool is_long) {
  for (const LayerKey& layer : layers) Count(layer, is_long, -1);
}

void StepOrder::Remove(const AttentionRequest& request, bool is_long) {
  for (const SessionStep& step : request.steps) Count({step.cache.get(), step.layer}, is_long, -1);
  if (!request.change) return;
  for (const auto& cache : request.change->caches) Count({cache.get(), kAllLayers}, is_long, -1);
}

void StepOrder::Count(const LayerKey& layer, bool is_long, std::int64_t amount) {
  const auto it = pending_.try_emplace(layer).first;
  (is_long ? it->second.num_long : it->second.num_short) += amount;
  if (it->second.num_long == 0 && it->second.num_short == 0) pending_.erase(it);
}

}  // namespace attention::server
