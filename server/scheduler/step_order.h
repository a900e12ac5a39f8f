// Keeps the steps of a session's layer in their order of arrival although requests are short or
// long and long ones are computed in slices: counts what is pending for each layer.
//
// A short request that follows a pending long one of the same layer becomes long itself, and so
// waits its turn behind it; a long one that follows short ones waits until they are done. A change
// of a cache counts for all of its layers.
//
// Used under the scheduler's lock.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "server/domain/attention_request.h"

namespace attention::server {

// One layer of one session.
using LayerKey = std::pair<const KvCache*, int>;

// Stands for all layers of a session, in place of the index of one.
inline constexpr int kAllLayers = -1;

// The layers that a request's steps or its change read or write; with repetitions.
std::vector<LayerKey> LayersOf(const AttentionRequest& request);

class StepOrder {
 public:
  // True when a long request for one of the layers is pending.
  bool FollowsLong(std::span<const LayerKey> layers) const;
  // True when no short request for one of the layers is pending.
  bool MayBeginLong(std::span<const LayerKey> layers) const;

  // Adds all or, when it throws, none.
  void Add(std::span<const LayerKey> layers, bool is_long);
  // Needs no memory, like what follows.
  void Remove(std::span<const LayerKey> layers, bool is_long);
  void Remove(const AttentionRequest& request, bool is_long);

 private:
  struct Pending {
    std::int64_t num_short = 0;
    std::int64_t num_long = 0;
  };

  // True for any request that is pending for one of the layers.
  template <typename Predicate>
  bool AnyPending(std::span<const LayerKey> layers, Predicate predicate) const;
  void Count(const LayerKey& layer, bool is_long, std::int64_t amount);

  std::map<LayerKey, Pending> pending_;
};

}  // namespace attention::server
