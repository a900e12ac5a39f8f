#include "kernels/cuda/plan/plan.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/api/validate.h"
#include "kernels/api/work_estimate.h"
#include "kernels/base/divide.h"
#include "kernels/cuda/contract/key_span.h"
#include "kernels/cuda/plan/launch_slices.h"
#include "kernels/cuda/plan/run_memory.h"
#include "kernels/cuda/plan/work_items.h"

namespace attention::cuda {
namespace {

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
      items_.AddProbes(task, 0, q, std::min<std::int64_t>(weights.q_end, q + kProbeTile), false);
    }
  }

  void Finish() {
    BeginPart(plan_.tasks.size(), 0, upload_.size(), results_.size());
    items_.Sort();
    AddSlices(plan_, items_.costs(), options_.launch_flops);
    PlaceTables();
  }

 private:
  void BeginPart(std::size_t task, std::int64_t query, std::size_t upload, std::size_t results) {
    plan_.parts.push_back({.task = task,
                           .query = query,
                           .upload = upload,
                           .results = results,
                           .items = items_.num_units(),
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
      items_.AddTile(planned, device, item);
    }
  }

  // Sums of rows of the task that is being added.
  void AddTotals(PlannedTask& planned, std::int64_t q_begin, std::int64_t q_end) {
    const DeviceTask device = DescribeTask(planned.task);
    if (device.kv_len == 0) return;
    planned.totals = scratch_.Add(planned.task.q_len * device.num_q_heads * 2 * sizeof(float));
    items_.AddTotals(device, static_cast<int>(plan_.tasks.size()) - 1, q_begin, q_end);
  }

  void AddColumnSums(PlannedTask& planned) {
    const AttentionTask& task = planned.task;
    planned.column_sums = results_.Add(task.kv_len * task.params.num_q_heads * sizeof(float));
    AddTotals(planned, 0, task.q_len);
    items_.AddProbes(task, static_cast<int>(plan_.tasks.size()) - 1, 0, task.q_len, true);
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
    plan_.partials = scratch_.Add(items_.num_partials() * sizeof(float));
    plan_.upload_bytes = upload_.size();
    plan_.scratch_bytes = scratch_.size();
    plan_.result_bytes = results_.size();
  }

  CudaPlan& plan_;
  const PlanOptions options_;
  WorkItems items_{plan_};
  BufferLayout upload_, scratch_, results_;
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
  if (absl::Status status = ValidateWeights(task); !status.ok()) return status;
  if (absl::Status status = CheckLimits(task.attention.params, task.attention.kv_len);
      !status.ok()) {
    return status;
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
