#include "kernels/cuda/plan/plan.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/api/work_estimate.h"
#include "kernels/base/divide.h"
#include "kernels/cuda/contract/key_span.h"
#include "kernels/cuda/plan/run_memory.h"

namespace attention::cuda {
namespace {

// About every kernel's tile of keys: for what a tile costs.
constexpr int kSpanTile = 64;
constexpr int kProbeTile = 32;
// Keys over which one block sums a tile's rows for the second pass.
constexpr int kTotalsRangeKeys = 1024;

int TileRowsOf(const KernelId& kernel) { return kernel.tile_rows != 0 ? kernel.tile_rows : 32; }

// Keys that some query of [first, last] sees.
KeySpan<kSpanTile> SpanOfQueries(const AttentionTask& task, std::int64_t first, std::int64_t last) {
  return SpanOf<kSpanTile>(DescribeTask(task), first, last, 0, static_cast<int>(task.kv_len));
}

bool IsEmpty(const KeySpan<kSpanTile>& span) {
  return span.window_begin >= span.end && span.kv_begin >= span.sink_end;
}

class Planner {
 public:
  Planner(CudaPlan* plan, const PlanOptions& options) : plan_(*plan), options_(options) {
    plan_.parts.emplace_back();
  }

  void AddTask(const AttentionTask& task) {
    plan_.tasks.push_back({.task = task, .kernel = ChooseKernel(task, options_.has_wgmma)});
    PlannedTask& planned = plan_.tasks.back();
    planned.is_split = IsSplit(task);
    planned.range_keys = RangeKeysOf(task);
    if (task.q_len == 0) return;
    CutIfFull(planned, 0);
    PlaceInputs(planned);
    const std::int64_t rows = task.q_len * task.params.num_q_heads;
    planned.o = results_.Add(task.q_len * OutputRowBytes(task));
    if (task.lse != nullptr) planned.lse = results_.Add(rows * sizeof(float));
    AddItems(planned, static_cast<int>(plan_.tasks.size()) - 1);
    if (task.column_sums != nullptr) AddColumnSums(planned);
  }

  void AddWeights(const WeightsTask& weights) {
    const AttentionTask& task = weights.attention;
    plan_.tasks.push_back({.task = task, .kernel = ChooseKernel(task, options_.has_wgmma)});
    PlannedTask& planned = plan_.tasks.back();
    planned.weights_q_begin = weights.q_begin;
    planned.weights_q_end = weights.q_end;
    if (weights.q_begin == weights.q_end || task.kv_len == 0) return;
    PlaceInputs(planned);
    const int num_heads = task.params.num_q_heads;
    planned.weights = results_.Add((weights.q_end - weights.q_begin) * num_heads *
                                   static_cast<std::size_t>(task.kv_len) * sizeof(float));
    AddTotals(planned, weights.q_begin, weights.q_end);
    for (std::int64_t q = weights.q_begin; q < weights.q_end; q += kProbeTile) {
      AddProbes(task, 0, q, std::min<std::int64_t>(weights.q_end, q + kProbeTile), false);
    }
  }

  void Finish() {
    BeginPart(plan_.tasks.size(), 0, upload_.size(), results_.size());
    MakeItems();
    double total = 0;
    for (double cost : costs_) total += cost;
    flops_per_cost_ = total > 0 ? plan_.flops / total : 0;
    for (std::size_t i = 0; i < plan_.num_parts(); ++i) {
      plan_.parts[i].slices = plan_.slices.size();
      AddSlices(plan_.parts[i], plan_.parts[i + 1]);
    }
    plan_.parts.back().slices = plan_.slices.size();
    PlaceTables();
  }

 private:
  // The items of a tile of rows and a range, which its KV heads have in common: the first one's.
  struct Unit {
    KernelId kernel;
    WorkItem item;
    double cost = 0;
  };

  const KernelId& KernelOf(std::size_t item) const {
    return plan_.tasks[plan_.items[item].task].kernel;
  }

  void BeginPart(std::size_t task, std::int64_t query, std::size_t upload, std::size_t results) {
    plan_.parts.push_back({.task = task,
                           .query = query,
                           .upload = upload,
                           .results = results,
                           .items = units_.size(),
                           .append_items = plan_.append_items.size(),
                           .totals = plan_.totals.size(),
                           .probes = plan_.probes.size()});
  }

  // Begins another part with a query of the task that is being added, if the present part has
  // enough to travel.
  void CutIfFull(const PlannedTask& planned, std::int64_t query) {
    const PlanPart& part = plan_.parts.back();
    const std::size_t upload =
        query == 0 ? upload_.size() : planned.q + query * QueryRowBytes(planned.task);
    const std::size_t results =
        query == 0 ? results_.size() : planned.o + query * OutputRowBytes(planned.task);
    if (upload - part.upload + results - part.results < options_.part_bytes) return;
    BeginPart(plan_.tasks.size() - 1, query, upload, results);
  }

  // Kernel by kernel, the most expensive first, so that the last blocks of a launch are short; the
  // heads of a tile side by side.
  void MakeItems() {
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

  void AddHeads(const Unit& unit) {
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

  // The queries come last, so that those of a part lie before those of the next.
  void PlaceInputs(PlannedTask& planned) {
    const AttentionTask& task = planned.task;
    const AttentionParams& params = task.params;
    const std::size_t heads_bytes = params.num_q_heads * sizeof(float);
    if (task.alibi_slopes != nullptr) planned.alibi = upload_.Add(heads_bytes);
    if (task.sink_logits != nullptr) planned.sinks = upload_.Add(heads_bytes);
    if (task.bias.data != nullptr) {
      planned.bias =
          upload_.Add(DenseBiasOrMaskOf(task, task.bias).elements() * DTypeBytes(task.bias.dtype));
    }
    if (task.mask.data != nullptr) {
      planned.mask = upload_.Add(DenseBiasOrMaskOf(task, task.mask).elements());
    }
    planned.pages = upload_.Add(NumPages(task) * sizeof(void*));
    planned.page_size = task.kv_pages.page_size;
    if (planned.is_contiguous()) PlaceContiguous(planned);
    planned.q = upload_.Add(task.q_len * QueryRowBytes(task));
  }

  static std::int64_t NumPages(const AttentionTask& task) {
    return task.kv_pages.pages == nullptr ? 1 : CeilDiv(task.kv_len, task.kv_pages.page_size);
  }

  // Contiguous keys and values are written into a page of the scratch first.
  void PlaceContiguous(PlannedTask& planned) {
    const AttentionTask& task = planned.task;
    const AttentionParams& params = task.params;
    const KeySpan<kSpanTile> span = SpanOfQueries(task, 0, task.q_len - 1);
    planned.page_size = kPageGranularity;
    if (IsEmpty(span)) return;
    planned.kv_begin = span.sink_end > span.kv_begin ? span.kv_begin : span.window_begin;
    planned.kv_end = std::max(span.end, span.sink_end);
    planned.kv_origin = RoundDown<std::int64_t>(planned.kv_begin, kPageGranularity);
    planned.page_size = RoundUp<std::int64_t>(planned.kv_end - planned.kv_origin, kPageGranularity);
    const std::int64_t tokens = planned.kv_end - planned.kv_begin;
    planned.k =
        upload_.Add(tokens * params.num_kv_heads * params.head_dim_qk * DTypeBytes(task.k.dtype));
    planned.v =
        upload_.Add(tokens * params.num_kv_heads * params.head_dim_v * DTypeBytes(task.v.dtype));
    planned.arena =
        scratch_.Add(MakePageLayout(params.kv_geometry(), planned.page_size).page_bytes);
    AddAppendItems(static_cast<int>(plan_.tasks.size()) - 1, params.num_kv_heads, tokens,
                   &plan_.append_items);
  }

  // The items of a tile of rows: one, or one for each range in which its rows see keys.
  void AddTile(const PlannedTask& planned, const DeviceTask& device, WorkItem item) {
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

  // Keys between the sinks and the window of an item that reads both.
  static int GapOf(const KeySpan<kSpanTile>& span) {
    if (span.first_tile() >= span.sink_end) return 0;
    return std::max(0, std::min(span.window_begin, span.end_tile()) - span.sink_end);
  }

  void AddItems(const PlannedTask& planned, int index) {
    const AttentionParams& params = planned.task.params;
    const std::int64_t rows = planned.task.q_len * params.group_size();
    const int tile_rows = TileRowsOf(planned.kernel);
    const DeviceTask device = DescribeTask(planned.task);
    for (std::int64_t row = 0; row < rows; row += tile_rows) {
      if (!planned.is_split && row > 0 && row % params.group_size() == 0) {
        CutIfFull(planned, row / params.group_size());
      }
      WorkItem item;
      item.task = index;
      item.row_begin = row;
      item.num_rows = static_cast<int>(std::min<std::int64_t>(tile_rows, rows - row));
      AddTile(planned, device, item);
    }
  }

  void AddProbes(const AttentionTask& task, int index, std::int64_t q_begin, std::int64_t q_end,
                 bool is_column_sum) {
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

  // Maxima and sums of queries [q_begin, q_end) of the task that is being added, range by range.
  void AddTotals(PlannedTask& planned, std::int64_t q_begin, std::int64_t q_end) {
    const AttentionParams& params = planned.task.params;
    const DeviceTask device = DescribeTask(planned.task);
    if (device.kv_len == 0) return;
    planned.totals = scratch_.Add(planned.task.q_len * params.num_q_heads * 2 * sizeof(float));
    WorkItem item;
    item.task = static_cast<int>(plan_.tasks.size()) - 1;
    for (std::int64_t row = q_begin * device.group; row < q_end * device.group; row += kProbeTile) {
      item.row_begin = row;
      item.num_rows =
          static_cast<int>(std::min<std::int64_t>(kProbeTile, q_end * device.group - row));
      for (item.kv_head = 0; item.kv_head < params.num_kv_heads; ++item.kv_head) {
        AddTotalsOfTile(device, item);
      }
    }
  }

  void AddTotalsOfTile(const DeviceTask& device, WorkItem item) {
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

  void AddColumnSums(PlannedTask& planned) {
    const AttentionTask& task = planned.task;
    planned.column_sums = results_.Add(task.kv_len * task.params.num_q_heads * sizeof(float));
    AddTotals(planned, 0, task.q_len);
    AddProbes(task, static_cast<int>(plan_.tasks.size()) - 1, 0, task.q_len, true);
  }

  // Launches of one kernel each, none with more than launch_flops unless a single item has.
  void AddSlices(const PlanPart& part, const PlanPart& next) {
    if (part.append_items < next.append_items) {
      plan_.slices.push_back({{KernelFamily::kAppend},
                              static_cast<std::int64_t>(part.append_items),
                              static_cast<std::int64_t>(next.append_items - part.append_items)});
    }
    for (std::size_t i = part.items; i < next.items; ++i) {
      const double flops = costs_[i] * flops_per_cost_;
      LaunchSlice* last = plan_.slices.size() == part.slices ? nullptr : &plan_.slices.back();
      if (last == nullptr || last->kernel != KernelOf(i) ||
          last->flops + flops > options_.launch_flops) {
        plan_.slices.push_back({KernelOf(i), static_cast<std::int64_t>(i), 0, 0});
        last = &plan_.slices.back();
        if (IsPersistent(last->kernel)) last->num_taken = plan_.num_counters++;
      }
      ++last->num_items;
      last->flops += flops;
    }
    AddSecondPass(KernelFamily::kRowTotals, plan_.totals, part.totals, next.totals, part);
    AddSecondPass(KernelFamily::kProbe, plan_.probes, part.probes, next.probes, part);
  }

  // It counts nothing; a launch is of one head dim, and of no more blocks than keep it short.
  template <typename Item>
  void AddSecondPass(KernelFamily family, const std::vector<Item>& items, std::size_t begin,
                     std::size_t end, const PlanPart& part) {
    constexpr std::int64_t kProbesPerSlice = 4096;
    for (std::size_t i = begin; i < end; ++i) {
      const KernelId kernel{.family = family,
                            .head_dim = plan_.tasks[items[i].task].kernel.head_dim};
      LaunchSlice* last = plan_.slices.size() == part.slices ? nullptr : &plan_.slices.back();
      if (last == nullptr || last->kernel != kernel || last->num_items == kProbesPerSlice) {
        plan_.slices.push_back({kernel, static_cast<std::int64_t>(i), 0, 0});
        last = &plan_.slices.back();
      }
      ++last->num_items;
    }
  }

  void PlaceTables() {
    plan_.tables = upload_.size();
    plan_.device_tasks = upload_.Add(plan_.tasks.size() * sizeof(DeviceTask));
    plan_.device_items = upload_.Add(plan_.items.size() * sizeof(WorkItem));
    plan_.device_totals = upload_.Add(plan_.totals.size() * sizeof(WorkItem));
    plan_.device_probes = upload_.Add(plan_.probes.size() * sizeof(ProbeItem));
    plan_.device_appends = upload_.Add(plan_.tasks.size() * sizeof(DeviceAppend));
    plan_.device_append_items = upload_.Add(plan_.append_items.size() * sizeof(AppendItem));
    plan_.counters = upload_.Add(plan_.num_counters * sizeof(std::uint32_t));
    plan_.partials = scratch_.Add(num_partials_ * sizeof(float));
    plan_.upload_bytes = upload_.size();
    plan_.scratch_bytes = scratch_.size();
    plan_.result_bytes = results_.size();
  }

  CudaPlan& plan_;
  const PlanOptions options_;
  std::vector<Unit> units_;
  BufferLayout upload_, scratch_, results_;
  std::vector<double> costs_;  // of plan_.items
  double flops_per_cost_ = 0;
  std::int64_t num_partials_ = 0;
};

}  // namespace

CudaPlan::CudaPlan() = default;
CudaPlan::~CudaPlan() = default;

std::int64_t RangeKeysOf(const AttentionTask& task) {
  if (task.q_len == 0) return kMinRangeKeys;
  const KeySpan<kSpanTile> span = SpanOfQueries(task, 0, task.q_len - 1);
  const std::int64_t seen =
      std::max(0, span.end - span.window_begin) + std::max(0, span.sink_end - span.kv_begin);
  const std::int64_t wanted = CeilDiv(seen, kMinRangeKeys * kWantedRanges);
  return kMinRangeKeys * static_cast<std::int64_t>(std::bit_ceil(
                             static_cast<std::uint64_t>(std::max<std::int64_t>(wanted, 1))));
}

absl::StatusOr<std::unique_ptr<CudaPlan>> MakeCudaPlan(std::span<const AttentionTask> tasks,
                                                       const PlanOptions& options) {
  if (absl::Status status = CheckTasks(tasks); !status.ok()) return status;
  auto plan = std::make_unique<CudaPlan>();
  for (const AttentionTask& task : tasks) plan->flops += EstimateWork(task).flops;
  Planner planner(plan.get(), options);
  plan->tasks.reserve(tasks.size());
  for (const AttentionTask& task : tasks) planner.AddTask(task);
  planner.Finish();
  return plan;
}

absl::StatusOr<std::unique_ptr<CudaPlan>> MakeWeightsPlan(const WeightsTask& task) {
  AttentionTask checked = task.attention;
  // A weights task has no output.
  if (checked.o.data == nullptr) checked.o.data = task.weights;
  if (absl::Status status = CheckTask(checked); !status.ok()) return status;
  if (task.q_begin < 0 || task.q_begin > task.q_end || task.q_end > checked.q_len) {
    return absl::InvalidArgumentError(absl::StrCat("rows are [", task.q_begin, ", ", task.q_end,
                                                   "), expected a part of [0, ", checked.q_len,
                                                   ")"));
  }
  if (task.weights == nullptr && task.q_begin < task.q_end) {
    return absl::InvalidArgumentError("weights is missing");
  }
  auto plan = std::make_unique<CudaPlan>();
  Planner planner(plan.get(), {});
  planner.AddWeights(task);
  planner.Finish();
  return plan;
}

void AddAppendItems(int append, int num_kv_heads, std::int64_t num_tokens,
                    std::vector<AppendItem>* items) {
  for (std::int64_t token = 0; token < num_tokens; token += kAppendTokens) {
    for (int kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
      items->push_back({append, kv_head, token, std::min(num_tokens, token + kAppendTokens)});
    }
  }
}

}  // namespace attention::cuda
