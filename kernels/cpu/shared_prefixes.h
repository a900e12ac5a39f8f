// Tasks whose page tables begin with the same pages, as those of forked sessions do, and the tiles
// that read these pages once for all of them (docs/design/shared-prefixes.md).
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "kernels/cpu/attention_kernel.h"

namespace attention::cpu {

// Tasks that are computed together. Those with most in common stand side by side.
struct SharedPrefix {
  std::vector<int> tasks;
  // [i]: from the first range on, so many have the same pages in task i as in the one before it.
  std::vector<std::int64_t> shared_ranges;
};

// Takes time that is linear in the pages that tasks share, and in the tasks.
std::vector<SharedPrefix> FindSharedPrefixes(std::span<const PlannedTask> tasks);

// Adds tiles of at most `tile_rows` rows of each KV head to `items`, and what they refer to to
// `joined`. They become smaller, but for kMinJoinedRows, where there would be fewer than `wanted`:
// splitting them over their ranges would leave partial results in memory.
inline constexpr std::int64_t kMinJoinedRows = 48;
void AddJoinedTiles(const SharedPrefix& prefix, std::span<const PlannedTask> tasks,
                    std::int64_t tile_rows, std::int64_t wanted, std::deque<JoinedTile>* joined,
                    std::vector<WorkItem>* items);

}  // namespace attention::cpu
