// The choice of caches whose pages go to the host's memory when a device has none left. A pure
// function of the idle caches, the time and the limits.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/time/time.h"

namespace attention::server {

// A cache with pages on the device, that no work in progress uses.
struct SpillCandidate {
  std::size_t bytes = 0;  // of its pages
  absl::Time last_used;
};

struct SpillLimits {
  absl::Duration min_idle;     // since its last use, for a cache to be taken
  std::size_t host_bytes = 0;  // that are free on the host
};

// The candidates to spill, as indices, in the order in which to do it until there is room: those
// idle for longest first, of those the largest. Left out are those used within min_idle, and those
// that the host has no room for behind those before them. Empty unless `needed` bytes come
// together.
std::vector<std::size_t> ChooseSpills(std::span<const SpillCandidate> candidates,
                                      std::size_t needed, absl::Time now,
                                      const SpillLimits& limits);

}  // namespace attention::server
