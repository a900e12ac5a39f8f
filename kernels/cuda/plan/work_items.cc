#include "kernels/cuda/plan/work_items.h"

#include <algorithm>

#include "kernels/cuda/contract/key_span.h"

namespace attention::cuda {
namespace {

// Keys over which one block sums a tile's rows for the second pass.
constexpr int kTotalsRangeKeys = 1024;

// Keys between the sinks and the window of an item that reads both.
int GapOf(const KeySpan<kSpanTile>& span) {
  if (span.first_tile() >= span.sink_end) return 0;
  return std::max(0, std::min(span.window_begin, span.end_tile()) - span.sink_end);
}

}  // namespace

void WorkItems::AddTile(const PlannedTask& planned, const DeviceTask& device, WorkItem item) {
  const std::int64_t first = item.row_begin / device.group;
  const std::int64_t last = (item.row_begin + item.num_rows - 1) / device.group;
  const auto kv_len = static_cast<int>(planned.task.kv_len);
  const int range = planned.is_split ? static_cast<int>(planned.range_keys) : std::max(kv_len, 1);
  const std::size_t first_unit = units_.size();
  const auto add = [&](int begin, int end, int num_keys) {
    item.key_begin = begin;
    item.key_end = end;
    // Reading a key costs about as much as computing with it for four rows.
    units_.push_back({planned.kernel, item,
                      static_cast<double>(num_keys + kSpanTile) * (item.num_rows + 4) *
                          (device.head_dim_qk + device.head_dim_v)});
    ++item.range;
  };
  for (int begin = 0; begin < kv_len; begin += range) {
    const int end = std::min(kv_len, begin + range);
    const auto span = SpanOf<kSpanTile>(device, first, last, begin, end);
    const int num_keys = span.end_tile() - span.first_tile() - GapOf(span);
    if (span.first_tile() < span.end_tile()) add(begin, end, num_keys);
  }
  if (units_.size() == first_unit) add(0, 0, 0);  // writes zeros
  const auto num_ranges = static_cast<std::int64_t>(units_.size() - first_unit);
  if (num_ranges == 1) {
    units_.back().item.num_ranges = 1;
    return;
  }
  for (std::size_t i = first_unit; i < units_.size(); ++i) {
    WorkItem& split = units_[i].item;
    split.num_ranges = static_cast<int>(num_ranges);
    split.counter = static_cast<int>(plan_.num_counters);
    split.partials = num_partials_;
  }
  plan_.num_counters += device.num_kv_heads;
  num_partials_ +=
      device.num_kv_heads * num_ranges * item.num_rows * PartialRowFloats(device.head_dim_v);
}

void WorkItems::AddProbes(const AttentionTask& task, int index, std::int64_t q_begin,
                          std::int64_t q_end, bool is_column_sum) {
  for (int head = 0; head < task.params.num_q_heads; ++head) {
    for (std::int64_t key = 0; key < task.kv_len; key += kProbeTile) {
      plan_.probes.push_back({.task = index,
                              .head = head,
                              .key_begin = static_cast<int>(key),
                              .is_column_sum = is_column_sum ? 1 : 0,
                              .q_begin = q_begin,
                              .q_end = q_end});
    }
  }
}

void WorkItems::AddTotals(const DeviceTask& device, int index, std::int64_t q_begin,
                          std::int64_t q_end) {
  WorkItem item;
  item.task = index;
  for (std::int64_t row = q_begin * device.group; row < q_end * device.group; row += kProbeTile) {
    item.row_begin = row;
    item.num_rows =
        static_cast<int>(std::min<std::int64_t>(kProbeTile, q_end * device.group - row));
    for (item.kv_head = 0; item.kv_head < device.num_kv_heads; ++item.kv_head) {
      AddTotalsOfTile(device, item);
    }
  }
}

void WorkItems::AddTotalsOfTile(const DeviceTask& device, WorkItem item) {
  const std::int64_t first = item.row_begin / device.group;
  const std::int64_t last = (item.row_begin + item.num_rows - 1) / device.group;
  const std::size_t first_item = plan_.totals.size();
  for (int begin = 0; begin < device.kv_len; begin += kTotalsRangeKeys) {
    item.key_begin = begin;
    item.key_end = std::min(device.kv_len, begin + kTotalsRangeKeys);
    const auto span = SpanOf<kProbeTile>(device, first, last, item.key_begin, item.key_end);
    if (span.first_tile() >= span.end_tile()) continue;
    plan_.totals.push_back(item);
    ++item.range;
  }
  if (plan_.totals.size() == first_item) {
    item.key_begin = item.key_end = 0;
    plan_.totals.push_back(item);
  }
  const auto num_ranges = static_cast<int>(plan_.totals.size() - first_item);
  for (std::size_t i = first_item; i < plan_.totals.size(); ++i) {
    plan_.totals[i].num_ranges = num_ranges;
    plan_.totals[i].counter = static_cast<int>(plan_.num_counters);
    plan_.totals[i].partials = num_partials_;
  }
  if (num_ranges == 1) return;
  ++plan_.num_counters;
  num_partials_ += static_cast<std::int64_t>(num_ranges) * item.num_rows * 2;
}

void WorkItems::Sort() {
  std::size_t num_items = 0;
  for (const Unit& unit : units_) {
    num_items += plan_.tasks[unit.item.task].task.params.num_kv_heads;
  }
  plan_.items.reserve(num_items);
  costs_.reserve(num_items);
  for (std::size_t i = 0; i < plan_.num_parts(); ++i) {
    const auto begin = units_.begin() + static_cast<std::ptrdiff_t>(plan_.parts[i].items);
    const auto end = units_.begin() + static_cast<std::ptrdiff_t>(plan_.parts[i + 1].items);
    std::stable_sort(begin, end, [](const Unit& a, const Unit& b) {
      return a.kernel != b.kernel ? a.kernel < b.kernel : a.cost > b.cost;
    });
    plan_.parts[i].items = plan_.items.size();
    for (auto unit = begin; unit != end; ++unit) AddHeads(*unit);
  }
  plan_.parts.back().items = plan_.items.size();
}

void WorkItems::AddHeads(const Unit& unit) {
  WorkItem item = unit.item;
  const PlannedTask& planned = plan_.tasks[item.task];
  const std::int64_t partials = static_cast<std::int64_t>(item.num_ranges) * item.num_rows *
                                PartialRowFloats(planned.task.params.head_dim_v);
  for (int head = 0; head < planned.task.params.num_kv_heads; ++head) {
    plan_.items.push_back(item);
    costs_.push_back(unit.cost);
    ++item.kv_head;
    if (item.num_ranges == 1) continue;
    ++item.counter;
    item.partials += partials;
  }
}

}  // namespace attention::cuda
