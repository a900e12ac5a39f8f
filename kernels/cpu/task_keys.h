// The keys that the queries of a task see, as the planner needs them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/api/attention_params.h"

namespace attention::cpu {

// The keys that some query of [q_begin, q_end) sees lie in [begin, end).
inline VisibleKeys UnionOfKeys(const AttentionTask& task, std::int64_t q_begin,
                               std::int64_t q_end) {
  VisibleKeys keys = VisibleKeysOf(task, task.position(q_begin));
  // Between the first and the last query lie the spans of the others, but for those of a tree.
  for (std::int64_t query = task.tree.has_rows() ? q_begin : q_end - 1; query < q_end; ++query) {
    const VisibleKeys seen = VisibleKeysOf(task, task.position(query));
    keys.begin = std::min(keys.begin, seen.begin);
    keys.end = std::max(keys.end, seen.end);
    keys.sink_end = std::max(keys.sink_end, seen.sink_end);
  }
  if (keys.sink_end > task.kv_begin) keys.begin = task.kv_begin;
  keys.end = std::max(keys.end, keys.sink_end);
  return keys;
}

inline std::int64_t VisibleCount(const AttentionTask& task, std::int64_t query) {
  const VisibleKeys keys = VisibleKeysOf(task, task.position(query));
  return keys.end - keys.begin + std::max<std::int64_t>(0, keys.sink_end - task.kv_begin);
}

// The cost of an item beside others. Reading a key for one row costs about as much as computing
// with it for four.
inline double CostOf(const AttentionParams& params, std::int64_t rows, double keys) {
  return (static_cast<double>(rows + 4) * keys + 1) * (params.head_dim_qk + params.head_dim_v);
}

}  // namespace attention::cpu
