#include "kernels/cpu/plan.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/api/work_estimate.h"
#include "kernels/cpu/shared_prefixes.h"
#include "kernels/cpu/task_keys.h"

namespace attention::cpu {
namespace {

// Each thread should find about this many items, so that the last ones level out unequal speeds.
constexpr int kItemsPerThread = 4;

void PlanPacking(const AttentionTask& task, int index, CpuPlan* plan) {
  const VisibleKeys keys = UnionOfKeys(task, 0, task.q_len);
  if (keys.begin >= keys.end) return;
  const KvGeometry geometry = task.params.kv_geometry();
  const std::int64_t page_size = RoundUp<std::int64_t>(task.kv_len, kBlockTokens);
  const auto offset_rows = [&](const RowsView& rows) {
    RowsView shifted = rows;
    shifted.data = static_cast<const char*>(rows.data) +
                   keys.begin * rows.row_stride * static_cast<std::int64_t>(DTypeBytes(rows.dtype));
    return shifted;
  };
  KvAppendTask append{.geometry = geometry,
                      .destination = {nullptr, 1, page_size},
                      .position = keys.begin,
                      .num_tokens = keys.end - keys.begin,
                      .k = offset_rows(task.k),
                      .v = geometry.value_is_key_prefix ? RowsView{} : offset_rows(task.v)};
  AddPackItems(append, static_cast<int>(plan->appends.size()), &plan->packs);
  plan->appends.push_back(append);
  plan->append_tasks.push_back(index);
  plan->arena_offsets[index] = static_cast<std::int64_t>(plan->arena_bytes);
  plan->arena_bytes += RoundUp<std::size_t>(MakePackedLayout(geometry, page_size).page_bytes, 4096);
}

void PlanTask(const AttentionTask& task, CpuPlan* plan) {
  const int index = static_cast<int>(plan->tasks.size());
  PlannedTask planned{.task = task, .layout = {}, .pages = task.kv_pages.pages};
  plan->arena_offsets.push_back(-1);
  plan->totals_offsets.push_back(-1);
  planned.has_modifiers = task.params.softmax_scale <= 0 || task.params.soft_cap > 0 ||
                          task.alibi_slopes != nullptr || task.bias.data != nullptr;
  planned.exponent_scale = static_cast<float>(
      (planned.has_modifiers ? 1.0 : task.params.softmax_scale) * std::numbers::log2e);
  const bool is_paged = task.kv_pages.pages != nullptr;
  const std::int64_t page_size =
      is_paged ? task.kv_pages.page_size
               : RoundUp<std::int64_t>(std::max<std::int64_t>(task.kv_len, 1), kBlockTokens);
  planned.layout = MakePackedLayout(task.params.kv_geometry(), page_size);
  planned.range_tokens = RangeTokensOf(planned.layout);
  plan->tile_memory.Include(planned);
  if (task.column_sums != nullptr) {
    plan->totals_offsets[index] = plan->totals_floats;
    plan->totals_floats += 2 * task.q_len * task.params.num_q_heads;
  }
  plan->tasks.push_back(planned);
  if (!is_paged && task.q_len > 0 && task.kv_len > 0) PlanPacking(task, index, plan);
}

// One item for each tile of `tile_rows` rows of each KV head.
void AddTiles(const PlannedTask& planned, int index, std::int64_t tile_rows,
              std::vector<WorkItem>* items) {
  const AttentionTask& task = planned.task;
  if (task.q_len == 0) return;
  const int group = task.params.group_size();
  const std::int64_t rows = task.q_len * group;
  const std::size_t first_item = items->size();
  double group_cost = 0;
  for (std::int64_t row = 0; row < rows; row += tile_rows) {
    WorkItem item;
    item.task = index;
    item.row_begin = row;
    item.row_end = std::min(rows, row + tile_rows);
    const std::int64_t first = item.row_begin / group;
    const std::int64_t last = (item.row_end - 1) / group;
    const VisibleKeys keys = UnionOfKeys(task, first, last + 1);
    if (keys.begin < keys.end) {
      item.range_begin = keys.begin / planned.range_tokens;
      item.range_end = CeilDiv<std::int64_t>(keys.end, planned.range_tokens);
    }
    item.cost =
        CostOf(task.params, item.row_end - item.row_begin,
               static_cast<double>(VisibleCount(task, first) + VisibleCount(task, last)) / 2);
    for (int kv_head = 0; kv_head < task.params.num_kv_heads; ++kv_head) {
      item.kv_head = kv_head;
      items->push_back(item);
    }
    group_cost = std::max(group_cost, item.cost);
  }
  for (std::size_t i = first_item; i < items->size(); ++i) (*items)[i].group_cost = group_cost;
}

// Splits an item over its ranges. Its results then wait for a merge.
void SplitItem(const WorkItem& item, double target_cost, CpuPlan* plan,
               std::vector<WorkItem>* items) {
  const PackedLayout& layout = plan->tasks[item.task].layout;
  const std::int64_t ranges = item.range_end - item.range_begin;
  const std::int64_t parts = std::min<std::int64_t>(std::lround(item.cost / target_cost), ranges);
  if (parts <= 1) {
    items->push_back(item);
    return;
  }
  const std::int64_t floats_per_range = (item.row_end - item.row_begin) * PartialFloats(layout);
  WorkItem merge = item;
  merge.partial_offset = plan->partial_floats;
  for (int block = 0; block < NumRowBlocks(item); ++block) plan->merges.push_back({merge, block});
  plan->partial_floats += ranges * floats_per_range;
  for (std::int64_t part = 0; part < parts; ++part) {
    WorkItem piece = item;
    piece.range_begin = item.range_begin + ranges * part / parts;
    piece.range_end = item.range_begin + ranges * (part + 1) / parts;
    piece.partial_offset =
        merge.partial_offset + (piece.range_begin - item.range_begin) * floats_per_range;
    piece.cost = item.cost / static_cast<double>(parts);
    items->push_back(piece);
  }
}

// The tiles of all tasks, of at most `tile_rows` rows.
std::vector<WorkItem> MakeTiles(const std::vector<SharedPrefix>& prefixes, std::int64_t tile_rows,
                                std::size_t wanted, CpuPlan* plan) {
  std::vector<WorkItem> tiles;
  std::vector<bool> is_joined(plan->tasks.size(), false);
  plan->joined.clear();
  for (const SharedPrefix& prefix : prefixes) {
    for (int index : prefix.tasks) is_joined[index] = true;
    AddJoinedTiles(prefix, plan->tasks, tile_rows, static_cast<std::int64_t>(wanted), &plan->joined,
                   &tiles);
  }
  for (std::size_t i = 0; i < plan->tasks.size(); ++i) {
    if (!is_joined[i]) AddTiles(plan->tasks[i], static_cast<int>(i), tile_rows, &tiles);
  }
  return tiles;
}

void PlanItems(int num_threads, CpuPlan* plan) {
  const std::size_t wanted = static_cast<std::size_t>(kItemsPerThread) * num_threads;
  const std::vector<SharedPrefix> prefixes = FindSharedPrefixes(plan->tasks);
  std::vector<WorkItem> tiles;
  for (int tile_blocks = kTileBlocks; tile_blocks >= 1; tile_blocks /= 2) {
    tiles = MakeTiles(prefixes, tile_blocks * kRowBlock, wanted, plan);
    // Smaller tiles read the keys more often, so they come after splitting over the ranges.
    std::int64_t ranges = 0;
    for (const WorkItem& tile : tiles) ranges += tile.range_end - tile.range_begin;
    // Without keys there is nothing to split, and little to do.
    if (num_threads == 1 || ranges == 0 || ranges >= static_cast<std::int64_t>(wanted)) break;
  }
  double total = 0;
  for (const WorkItem& tile : tiles) total += tile.cost;
  const double target = total / static_cast<double>(wanted);
  for (const WorkItem& tile : tiles) {
    if (num_threads > 1) {
      SplitItem(tile, target, plan, &plan->items);
    } else {
      plan->items.push_back(tile);
    }
  }
  // Longest first, so that the last items are short; but tiles that read the same keys stay
  // together, because a head's keys and values fit L2 where those of all heads do not.
  std::stable_sort(plan->items.begin(), plan->items.end(),
                   [](const WorkItem& a, const WorkItem& b) {
                     if (a.group_cost != b.group_cost) return a.group_cost > b.group_cost;
                     if (a.task != b.task) return a.task < b.task;
                     if (a.kv_head != b.kv_head) return a.kv_head < b.kv_head;
                     return a.cost > b.cost;
                   });
}

// Cuts the items into units. A unit runs on one thread: large ones would leave others idle. The
// last heads, one for each thread, are left in items that level out.
class UnitPlanner {
 public:
  UnitPlanner(int num_threads, CpuPlan* plan)
      : num_threads_(num_threads), plan_(*plan), append_of_task_(plan->tasks.size(), -1) {
    for (std::size_t i = 0; i < plan_.appends.size(); ++i) {
      append_of_task_[plan_.append_tasks[i]] = static_cast<int>(i);
    }
    for (const WorkItem& item : plan_.items) cost_left_ += item.cost;
    max_cost_ = num_threads == 1 ? cost_left_ : 1.01 * cost_left_ / (kItemsPerThread * num_threads);
  }

  void AddUnits() {
    const auto count = static_cast<std::int64_t>(plan_.items.size());
    for (std::int64_t begin = 0; begin < count;) {
      const bool begins_task = begin == 0 || plan_.items[begin - 1].task != plan_.items[begin].task;
      Run run = FindRun(begin, /*is_whole_task=*/begins_task);
      if (begins_task && !MayPack(run)) run = FindRun(begin, /*is_whole_task=*/false);
      AddRun(run, MayPack(run));
      cost_left_ -= run.cost;
      begin = run.end;
    }
    std::erase_if(plan_.packs, [this](const PackItem& pack) {
      const int task = plan_.append_tasks[pack.append];
      return packed_.count({task, kAllHeads}) > 0 || packed_.count({task, pack.kv_head}) > 0;
    });
    plan_.has_packing_units = !packed_.empty();
  }

 private:
  static constexpr int kAllHeads = -1;

  // Consecutive items of one KV head or of one task.
  struct Run {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    bool is_whole_task = false;
    bool is_split = false;
    double cost = 0;
  };

  Run FindRun(std::int64_t begin, bool is_whole_task) const {
    Run run{.begin = begin, .end = begin, .is_whole_task = is_whole_task};
    const WorkItem& first = plan_.items[begin];
    for (; run.end < static_cast<std::int64_t>(plan_.items.size()); ++run.end) {
      const WorkItem& item = plan_.items[run.end];
      if (item.task != first.task || (!is_whole_task && item.kv_head != first.kv_head)) break;
      run.cost += item.cost;
      run.is_split = run.is_split || item.partial_offset >= 0;
    }
    return run;
  }

  bool MayPack(const Run& run) const {
    const int task = plan_.items[run.begin].task;
    const PlannedTask& planned = plan_.tasks[task];
    if (plan_.arena_offsets[task] < 0 || planned.task.column_sums != nullptr) return false;
    const bool is_small = run.is_whole_task ? planned.layout.page_bytes <= kMaxUnitTaskBytes
                                            : planned.layout.head_bytes <= kMaxUnitHeadBytes;
    return is_small && !run.is_split && run.cost <= max_cost_ &&
           (num_threads_ == 1 || cost_left_ > 1.01 * num_threads_ * run.cost);
  }

  void AddRun(const Run& run, bool is_packed) {
    const WorkItem& first = plan_.items[run.begin];
    if (is_packed) {
      plan_.units.push_back({run.begin, run.end, append_of_task_[first.task], run.is_whole_task});
      packed_.emplace(first.task, run.is_whole_task ? kAllHeads : first.kv_head);
      return;
    }
    for (std::int64_t item = run.begin; item < run.end; ++item) {
      plan_.units.push_back({item, item + 1});
    }
  }

  const int num_threads_;
  CpuPlan& plan_;
  std::vector<int> append_of_task_;
  std::set<std::pair<int, int>> packed_;  // (task, KV head)
  double cost_left_ = 0;
  double max_cost_ = 0;
};

void PlanColumns(int index, CpuPlan* plan) {
  const PlannedTask& planned = plan->tasks[index];
  const AttentionTask& task = planned.task;
  if (task.column_sums == nullptr) return;
  plan->max_column_group = std::max(plan->max_column_group, task.params.group_size());
  WorkItem item;
  item.task = index;
  item.row_end = task.q_len * task.params.group_size();
  for (std::int64_t range = 0; range * planned.range_tokens < task.kv_len; ++range) {
    item.range_begin = range;
    item.range_end = range + 1;
    for (int kv_head = 0; kv_head < task.params.num_kv_heads; ++kv_head) {
      item.kv_head = kv_head;
      plan->column_items.push_back(item);
    }
  }
}

}  // namespace

void AddPackItems(const KvAppendTask& append, int index, std::vector<PackItem>* items) {
  std::int64_t end = 0;
  for (std::int64_t token = 0; token < append.num_tokens; token = end) {
    end = PackEnd(append, token);
    for (int kv_head = 0; kv_head < append.geometry.num_kv_heads; ++kv_head) {
      items->push_back({index, kv_head, token, end});
    }
  }
}

absl::StatusOr<std::unique_ptr<CpuPlan>> MakeCpuPlan(std::span<const AttentionTask> tasks,
                                                     int num_threads) {
  if (absl::Status status = ValidateTasks(tasks); !status.ok()) return status;
  auto plan = std::make_unique<CpuPlan>();
  plan->tasks.reserve(tasks.size());
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    PlanTask(tasks[i], plan.get());
    PlanColumns(static_cast<int>(i), plan.get());
    plan->flops += EstimateWork(tasks[i]).flops;
  }
  plan->arena_pages.resize(tasks.size());
  PlanItems(num_threads, plan.get());
  UnitPlanner(num_threads, plan.get()).AddUnits();
  return plan;
}

absl::StatusOr<std::unique_ptr<CpuPlan>> MakeWeightsPlan(const WeightsTask& weights) {
  if (absl::Status status = ValidateWeights(weights); !status.ok()) return status;
  AttentionTask task = weights.attention;
  task.column_sums = nullptr;
  auto plan = std::make_unique<CpuPlan>();
  if (weights.q_begin == weights.q_end) return plan;
  PlanTask(task, plan.get());
  plan->arena_pages.resize(1);
  std::vector<WorkItem> tiles;
  AddTiles(plan->tasks.front(), 0, kTileRows, &tiles);
  const std::int64_t row_begin = weights.q_begin * task.params.group_size();
  const std::int64_t row_end = weights.q_end * task.params.group_size();
  for (WorkItem& tile : tiles) {
    tile.row_begin = std::max(tile.row_begin, row_begin);
    tile.row_end = std::min(tile.row_end, row_end);
    if (tile.row_begin < tile.row_end) plan->items.push_back(tile);
  }
  return plan;
}

}  // namespace attention::cpu
