#include "kernels/cpu/shared_prefixes.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/base/divide.h"
#include "kernels/cpu/task_keys.h"

namespace attention::cpu {
namespace {

// Pages in common are worth a tile in common if they hold this share of what one of the tasks
// reads.
constexpr std::int64_t kLeastShare = 8;
// Forks of forks so deep share no more than what they have in common at that depth.
constexpr int kMaxForkDepth = 256;

std::int64_t RowsOf(const PlannedTask& planned) {
  return planned.task.q_len * planned.task.params.group_size();
}

// The ranges that some query of the task sees.
struct Ranges {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

Ranges RangesOf(const PlannedTask& planned, std::int64_t q_begin, std::int64_t q_end) {
  const VisibleKeys keys = UnionOfKeys(planned.task, q_begin, q_end);
  if (keys.begin >= keys.end) return {};
  return {keys.begin / planned.range_tokens, CeilDiv<std::int64_t>(keys.end, planned.range_tokens)};
}

Ranges RangesOf(const PlannedTask& planned) { return RangesOf(planned, 0, planned.task.q_len); }

// The first page of which some query sees a key.
std::int64_t FirstPageOf(const AttentionTask& task) {
  return UnionOfKeys(task, 0, task.q_len).begin / task.kv_pages.page_size;
}

// A task that fills a tile by itself reads each key for so many rows that it gains nothing.
bool MayJoin(const PlannedTask& planned) {
  const AttentionTask& task = planned.task;
  if (task.kv_pages.pages == nullptr || task.q_len == 0 || RowsOf(planned) >= kTileRows) {
    return false;
  }
  const VisibleKeys keys = UnionOfKeys(task, 0, task.q_len);
  return keys.end - keys.begin >= planned.range_tokens &&
         task.kv_pages.pages[FirstPageOf(task)] != nullptr;
}

// Tasks of one tile go through the same kernel, with the same layout and the same exponents.
bool MatchesKernel(const PlannedTask& a, const PlannedTask& b) {
  return a.task.params == b.task.params && a.task.q.dtype == b.task.q.dtype &&
         a.task.kv_pages.page_size == b.task.kv_pages.page_size &&
         a.has_modifiers == b.has_modifiers && FirstPageOf(a.task) == FirstPageOf(b.task);
}

// Brings tasks into an order in which those that share most pages stand side by side.
class Sorter {
 public:
  Sorter(std::span<const PlannedTask> tasks, SharedPrefix* out) : tasks_(tasks), out_(*out) {}

  // Adds `indices`, which have `page` pages in common, and `before` with the task added last.
  void Add(std::span<int> indices, std::int64_t page, std::int64_t before, int depth = 0) {
    if (indices.size() == 1) return AddOne(indices[0], before);
    page = FirstDifference(indices, page);
    if (depth == kMaxForkDepth) {
      for (int index : indices) AddOne(index, std::exchange(before, page));
      return;
    }
    std::sort(indices.begin(), indices.end(), [&](int a, int b) {
      const void* page_a = PageOf(a, page);
      const void* page_b = PageOf(b, page);
      return page_a != page_b ? std::less<>()(page_a, page_b) : a < b;
    });
    while (!indices.empty()) {
      // A task without more pages goes on with nobody.
      std::size_t same = 1;
      const void* first = PageOf(indices[0], page);
      while (first != kNoPage && same < indices.size() && PageOf(indices[same], page) == first) {
        ++same;
      }
      Add(indices.first(same), same > 1 ? page + 1 : page, std::exchange(before, page), depth + 1);
      indices = indices.subspan(same);
    }
  }

 private:
  void AddOne(int index, std::int64_t before) {
    const PlannedTask& planned = tasks_[index];
    out_.tasks.push_back(index);
    out_.shared_ranges.push_back(before * planned.task.kv_pages.page_size / planned.range_tokens);
  }

  // Behind the pages that the task needs.
  static inline const char kEnd = 0;
  static constexpr const void* kNoPage = &kEnd;

  // Null where windows have let the page go: nobody sees it, in whichever table.
  const void* PageOf(int index, std::int64_t page) const {
    const AttentionTask& task = tasks_[index].task;
    return page * task.kv_pages.page_size < task.kv_len ? task.kv_pages.pages[page] : kNoPage;
  }

  std::int64_t FirstDifference(std::span<const int> indices, std::int64_t page) const {
    for (;; ++page) {
      const void* first = PageOf(indices[0], page);
      if (first == kNoPage) return page;
      for (int index : indices) {
        if (PageOf(index, page) != first) return page;
      }
    }
  }

  std::span<const PlannedTask> tasks_;
  SharedPrefix& out_;
};

bool IsWorthJoining(const PlannedTask& a, const PlannedTask& b, std::int64_t shared_ranges) {
  const Ranges ranges_a = RangesOf(a), ranges_b = RangesOf(b);
  const std::int64_t seen = shared_ranges - std::max(ranges_a.begin, ranges_b.begin);
  const std::int64_t least = std::min(ranges_a.end - ranges_a.begin, ranges_b.end - ranges_b.begin);
  return seen > 0 && seen * kLeastShare >= least;
}

// Cuts tasks where neighbours have too little in common.
void AddGroups(const SharedPrefix& sorted, std::span<const PlannedTask> tasks,
               std::vector<SharedPrefix>* groups) {
  for (std::size_t begin = 0, end = 0; begin < sorted.tasks.size(); begin = end) {
    end = begin + 1;
    while (end < sorted.tasks.size() &&
           IsWorthJoining(tasks[sorted.tasks[end - 1]], tasks[sorted.tasks[end]],
                          sorted.shared_ranges[end])) {
      ++end;
    }
    if (end - begin < 2) continue;
    SharedPrefix& group = groups->emplace_back();
    group.tasks.assign(sorted.tasks.begin() + begin, sorted.tasks.begin() + end);
    group.shared_ranges.assign(sorted.shared_ranges.begin() + begin,
                               sorted.shared_ranges.begin() + end);
    group.shared_ranges.front() = 0;
  }
}

// Makes one tile of the rows that are put into it.
class TileMaker {
 public:
  TileMaker(JoinedTile* tile, WorkItem* item) : tile_(*tile), item_(*item) {}

  // `shared_ranges` with the rows that were added last.
  void AddRows(const PlannedTask& planned, std::int64_t row_begin, std::int64_t row_end,
               std::int64_t shared_ranges) {
    const int group = planned.task.params.group_size();
    const Ranges ranges = RangesOf(planned, row_begin / group, (row_end - 1) / group + 1);
    if (tile_.rows.empty()) item_.range_begin = std::numeric_limits<std::int64_t>::max();
    item_.range_begin = std::min(item_.range_begin, ranges.begin);
    item_.range_end = std::max(item_.range_end, ranges.end);
    tile_.rows.push_back({&planned, row_begin, row_end});
    shared_ranges_.push_back(shared_ranges);
    begins_.push_back(begins_.back() + static_cast<int>(row_end - row_begin));
  }

  void Finish() {
    item_.row_end = begins_.back();
    AddStretches(0, tile_.rows.size(), item_.range_begin);
    for (const Stretch& stretch : tile_.stretches) item_.cost += CostOfStretch(stretch);
    item_.joined = &tile_;
  }

 private:
  // The rows of tasks [first, last) from the range `begin` on.
  void AddStretches(std::size_t first, std::size_t last, std::int64_t begin) {
    const auto shared = [this](std::size_t i) { return shared_ranges_[i]; };
    std::int64_t end = item_.range_end;
    for (std::size_t i = first + 1; i < last; ++i) end = std::min(end, shared(i));
    if (begin < end) {
      tile_.stretches.push_back(
          {tile_.rows[first].planned, begins_[first], begins_[last], begin, end});
    }
    if (last - first == 1) return;
    for (std::size_t i = first, next = 0; i < last; i = next) {
      next = i + 1;
      while (next < last && shared(next) > end) ++next;
      AddStretches(i, next, std::max(begin, end));
    }
  }

  double CostOfStretch(const Stretch& stretch) const {
    const PlannedTask& planned = *stretch.planned;
    const AttentionTask& task = planned.task;
    const VisibleKeys keys = VisibleKeysOf(task, task.position(0));
    const std::int64_t begin = std::max(keys.begin, stretch.range_begin * planned.range_tokens);
    const std::int64_t end = std::min(keys.end, stretch.range_end * planned.range_tokens);
    return CostOf(task.params, stretch.row_end - stretch.row_begin,
                  static_cast<double>(std::max<std::int64_t>(0, end - begin)));
  }

  JoinedTile& tile_;
  WorkItem& item_;
  std::vector<std::int64_t> shared_ranges_;
  std::vector<int> begins_{0};
};

// As many rows in each tile, and whole tasks where they are equal.
std::int64_t TileRowsOf(const SharedPrefix& prefix, std::span<const PlannedTask> tasks,
                        std::int64_t tile_rows, std::int64_t wanted) {
  std::int64_t rows = 0;
  for (int index : prefix.tasks) rows += RowsOf(tasks[index]);
  const PlannedTask& first = tasks[prefix.tasks.front()];
  const std::int64_t heads = first.task.params.num_kv_heads;
  const std::int64_t most = std::min(tile_rows, std::max(kMinJoinedRows, rows * heads / wanted));
  const std::int64_t tiles = CeilDiv(rows, most);
  const std::int64_t even = CeilDiv(rows, tiles);
  const std::int64_t whole_tasks = std::lcm<std::int64_t>(kRowBlock, RowsOf(first));
  const std::int64_t rounded = RoundUp(even, whole_tasks);
  return rounded <= tile_rows ? rounded
                              : std::min(tile_rows, RoundUp<std::int64_t>(even, kRowBlock));
}

}  // namespace

std::vector<SharedPrefix> FindSharedPrefixes(std::span<const PlannedTask> tasks) {
  std::vector<int> left;
  for (int i = 0; i < static_cast<int>(tasks.size()); ++i) {
    if (MayJoin(tasks[i])) left.push_back(i);
  }
  const auto first_page = [&](int index) -> const void* {
    return tasks[index].task.kv_pages.pages[FirstPageOf(tasks[index].task)];
  };
  std::sort(left.begin(), left.end(), [&](int a, int b) {
    return first_page(a) != first_page(b) ? std::less<>()(first_page(a), first_page(b)) : a < b;
  });
  std::vector<SharedPrefix> groups;
  for (std::size_t begin = 0, end = 0; begin < left.size(); begin = end) {
    end = begin + 1;
    while (end < left.size() && first_page(left[end]) == first_page(left[begin])) ++end;
    std::span<int> same(left.data() + begin, end - begin);
    while (same.size() > 1) {
      const auto others = std::stable_partition(same.begin(), same.end(), [&](int index) {
        return MatchesKernel(tasks[same.front()], tasks[index]);
      });
      const auto count = static_cast<std::size_t>(others - same.begin());
      SharedPrefix sorted;
      const std::int64_t page = FirstPageOf(tasks[same.front()].task);
      Sorter(tasks, &sorted).Add(same.first(count), page, /*before=*/0);
      AddGroups(sorted, tasks, &groups);
      same = same.subspan(count);
    }
  }
  return groups;
}

void AddJoinedTiles(const SharedPrefix& prefix, std::span<const PlannedTask> tasks,
                    std::int64_t tile_rows, std::int64_t wanted, std::deque<JoinedTile>* joined,
                    std::vector<WorkItem>* items) {
  const std::int64_t rows_per_tile = TileRowsOf(prefix, tasks, tile_rows, wanted);
  const std::size_t first_item = items->size();
  const int num_kv_heads = tasks[prefix.tasks.front()].task.params.num_kv_heads;
  std::size_t at = 0;    // task
  std::int64_t row = 0;  // of the task, the next one
  double group_cost = 0;
  while (at < prefix.tasks.size()) {
    WorkItem item;
    item.task = prefix.tasks[at];
    TileMaker tile(&joined->emplace_back(), &item);
    for (std::int64_t room = rows_per_tile; room > 0 && at < prefix.tasks.size();) {
      const PlannedTask& planned = tasks[prefix.tasks[at]];
      const std::int64_t end = std::min(RowsOf(planned), row + room);
      tile.AddRows(planned, row, end, prefix.shared_ranges[at]);
      room -= end - row;
      row = end;
      if (end < RowsOf(planned)) break;
      row = 0;
      ++at;
    }
    tile.Finish();
    for (item.kv_head = 0; item.kv_head < num_kv_heads; ++item.kv_head) items->push_back(item);
    group_cost = std::max(group_cost, item.cost);
  }
  for (std::size_t i = first_item; i < items->size(); ++i) (*items)[i].group_cost = group_cost;
}

}  // namespace attention::cpu
