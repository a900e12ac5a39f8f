// Rows of an item, which are numbered query * group + head, in 31 bits: a division of 64 is a call,
// around which registers would spill. The planner sees to it that these kernels' rows are few
// enough.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/contract/key_span.h"
#include "kernels/cuda/kernels/intrinsics/simt.h"

namespace attention::cuda {

struct PackedRow {
  int query;
  int head;  // within the group

  ATTENTION_DEVICE PackedRow(const DeviceTask& task, const WorkItem& item, int row) {
    const auto packed = static_cast<unsigned>(item.row_begin) + static_cast<unsigned>(row);
    const auto group = static_cast<unsigned>(task.group);
    query = static_cast<int>(packed / group);
    head = static_cast<int>(packed % group);
  }
  // In [q_len, num_q_heads].
  ATTENTION_DEVICE std::int64_t IndexIn(const DeviceTask& task, const WorkItem& item) const {
    return static_cast<std::int64_t>(query) * task.num_q_heads + item.kv_head * task.group + head;
  }
};

// The keys of an item.
template <int kTileKeys>
ATTENTION_DEVICE KeySpan<kTileKeys> SpanOfItem(const DeviceTask& task, const WorkItem& item) {
  return SpanOf<kTileKeys>(task, PackedRow(task, item, 0).query,
                           PackedRow(task, item, item.num_rows - 1).query, item.key_begin,
                           item.key_end);
}

}  // namespace attention::cuda
