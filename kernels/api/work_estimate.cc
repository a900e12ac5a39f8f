#include "kernels/api/work_estimate.h"

#include <algorithm>

namespace attention {
namespace {

std::int64_t VisibleCount(const VisibleKeys& keys, std::int64_t kv_begin) {
  return std::max<std::int64_t>(0, keys.end - keys.begin) +
         std::max<std::int64_t>(0, keys.sink_end - kv_begin);
}

// Visible pairs over all queries. The count is a piecewise linear function of the position, so long
// prompts are summed as an arithmetic series between sampled queries whose counts lie on one line.
double VisiblePairs(const AttentionTask& task, std::int64_t first, std::int64_t last) {
  const auto count = [&](std::int64_t query) {
    return static_cast<double>(
        VisibleCount(VisibleKeysOf(task, task.position(query)), task.kv_begin));
  };
  const std::int64_t queries = last - first + 1;
  if (queries <= 0) return 0;
  const double a = count(first);
  const double b = count(last);
  if (queries <= 2) return queries == 1 ? a : a + b;
  const double slope = (b - a) / static_cast<double>(last - first);
  const auto is_on_line = [&](std::int64_t query) {
    return count(query) == a + slope * static_cast<double>(query - first);
  };
  const std::int64_t middle = first + (queries - 1) / 2;
  const std::int64_t quarter = first + (queries - 1) / 4;
  if (is_on_line(middle) && is_on_line(quarter)) {
    return (a + b) / 2 * static_cast<double>(queries);
  }
  return VisiblePairs(task, first, middle) + VisiblePairs(task, middle + 1, last);
}

}  // namespace

WorkEstimate EstimateWork(const AttentionTask& task) {
  const AttentionParams& params = task.params;
  WorkEstimate work;
  if (task.q_len <= 0) return work;
  const double pairs = VisiblePairs(task, 0, task.q_len - 1);
  const double dims = params.head_dim_qk + params.head_dim_v;
  work.flops = 2.0 * dims * pairs * params.num_q_heads;

  const VisibleKeys oldest = VisibleKeysOf(task, task.position(0));
  const VisibleKeys newest = VisibleKeysOf(task, task.position(task.q_len - 1));
  const std::int64_t keys = std::max<std::int64_t>(0, newest.end - oldest.begin) +
                            std::max<std::int64_t>(0, oldest.sink_end - task.kv_begin);
  const KvGeometry geometry = params.kv_geometry();
  const double scale_bytes =
      HasRowScales(params.kv_dtype) ? geometry.rows_per_head() * sizeof(float) : 0;
  const double element_bytes =
      geometry.elements_per_head() * static_cast<double>(DTypeBytes(params.kv_dtype));
  work.kv_bytes = static_cast<double>(keys) * params.num_kv_heads * (element_bytes + scale_bytes);
  work.io_bytes = static_cast<double>(task.q_len) * params.num_q_heads * dims *
                  static_cast<double>(DTypeBytes(params.dtype));
  return work;
}

double RooflineSeconds(const WorkEstimate& work, const DeviceCeilings& ceilings) {
  const double arithmetic =
      ceilings.flops_per_second > 0 ? work.flops / ceilings.flops_per_second : 0;
  const double memory = ceilings.bytes_per_second > 0
                            ? (work.kv_bytes + work.io_bytes) / ceilings.bytes_per_second
                            : 0;
  return std::max(arithmetic, memory);
}

}  // namespace attention
