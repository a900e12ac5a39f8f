// Cuts tasks into the blocks of launches. Pure functions of the tasks: no device is asked.
//
// Bits depend on the device and the task alone: its kernel (types, head dims, rows), its tile and
// its ranges (README.md). The order of items and the cut into slices follow the batch,
// and do not show.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/contract/kernel_id.h"

namespace attention::cuda {

// Every task's keys are fewer: device code counts them in 31 bits.
inline constexpr std::int64_t kMaxKvLen = std::int64_t{1} << 30;

// Tasks of more rows (q_len * group) than this are prefill: their tiles are plenty, and each reads
// all its keys in one go. Tasks of fewer rows are split over ranges of keys.
inline constexpr std::int64_t kMaxSplitRows = 128;

// Ranges are at least this long, a multiple of every kernel's tile of keys.
inline constexpr std::int64_t kMinRangeKeys = 128;
// About how many ranges a task is split into at the most.
inline constexpr std::int64_t kWantedRanges = 16;

inline constexpr std::size_t kNoOffset = static_cast<std::size_t>(-1);

// Hands out offsets in a buffer whose size is being found out, multiples of 256 bytes.
class BufferLayout {
 public:
  std::size_t Add(std::size_t bytes) {
    const std::size_t offset = size_;
    size_ += (bytes + 255) / 256 * 256;
    return offset;
  }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_ = 0;
};

// A task with the offsets of its tensors; kNoOffset: it has no such tensor.
struct PlannedTask {
  AttentionTask task;
  KernelId kernel;
  bool is_split = false;
  std::int64_t range_keys = 0;  // of a split task

  // In the upload.
  std::size_t q = kNoOffset, pages = kNoOffset, alibi = kNoOffset, sinks = kNoOffset;
  std::size_t bias = kNoOffset, mask = kNoOffset;
  // Contiguous keys and values: rows [kv_begin, kv_end) in the upload, and in the scratch the
  // page that they are written to, whose first token is kv_origin.
  std::size_t k = kNoOffset, v = kNoOffset, arena = kNoOffset;
  // In the scratch, of tasks with a second pass: DeviceTask::totals.
  std::size_t totals = kNoOffset;
  std::int64_t kv_begin = 0, kv_end = 0, kv_origin = 0;
  std::int64_t page_size = 0;
  // In the results.
  std::size_t o = kNoOffset, lse = kNoOffset, column_sums = kNoOffset, weights = kNoOffset;
  std::int64_t weights_q_begin = 0, weights_q_end = 0;

  bool is_contiguous() const { return task.kv_pages.pages == nullptr; }
};

// A launch: `num_items` items of the list that the kernel's family takes.
struct LaunchSlice {
  KernelId kernel;
  std::int64_t first_item = 0;
  std::int64_t num_items = 0;
  double flops = 0;             // its share of the plan's
  std::int64_t num_taken = -1;  // of a persistent kernel, which counter
};

// A part of a plan, whose tensors travel while another part is computed: the queries from here to
// where the next part begins, and what else their tasks need, with the first of them.
struct PlanPart {
  std::size_t task = 0;
  std::int64_t query = 0;
  // Where its bytes begin; they end where those of the next part begin.
  std::size_t upload = 0;
  std::size_t results = 0;
  // Where its items and slices begin.
  std::size_t items = 0, append_items = 0, totals = 0, probes = 0, slices = 0;
};

struct RunMemory;  // run_memory.h

// The decisions of a plan: the same for all tasks of the same shapes.
struct PlanShape {
  std::vector<PlannedTask> tasks;
  std::vector<WorkItem> items;
  std::vector<WorkItem> totals;  // of rows that probes weigh
  std::vector<ProbeItem> probes;
  std::vector<AppendItem> append_items;  // of contiguous keys and values; `append` is the task
  std::vector<LaunchSlice> slices;       // in order
  std::vector<PlanPart> parts;           // in order; at least one, and one more for their end
  std::size_t num_parts() const { return parts.size() - 1; }

  // In the upload, behind the parts: what all of them use.
  std::size_t tables = 0;
  std::size_t device_tasks = 0, device_items = 0, device_totals = 0, device_probes = 0,
              device_appends = 0, device_append_items = 0;
  // Zero when they arrive; kernels count in them.
  std::size_t counters = 0;
  std::int64_t num_counters = 0;
  // In the scratch.
  std::size_t partials = 0;

  std::size_t upload_bytes = 0;
  std::size_t scratch_bytes = 0;
  std::size_t result_bytes = 0;

  double flops = 0;
};

struct CudaPlan : AttentionPlan, PlanShape {
  CudaPlan();
  ~CudaPlan() override;

  double flops_done = 0;
  // The run's, while it is under way or has yielded; else null.
  std::unique_ptr<RunMemory> memory;
  std::size_t next_slice = 0;
  std::size_t next_part = 0;  // to be uploaded

  PlanProgress progress() const override { return {flops, flops_done}; }
};

struct PlanOptions {
  // Bounds a launch: a run that yields stops between two.
  double launch_flops = 0;
  // True if the device has the instructions of compute capability 9.0.
  bool has_wgmma = false;
  // The least of a part that another one follows.
  std::size_t part_bytes = std::numeric_limits<std::size_t>::max();
};

// The kernel of a task, whose pointers may be null.
KernelId ChooseKernel(const AttentionTask& task, bool has_wgmma);
bool IsSplit(const AttentionTask& task);
// Keys of a range of a split task: a power of two times kMinRangeKeys, by how many keys it sees.
std::int64_t RangeKeysOf(const AttentionTask& task);

// Bytes of a query's rows as they travel, of all heads: padded, and in the output's type.
std::size_t QueryRowBytes(const AttentionTask& task);
std::size_t OutputRowBytes(const AttentionTask& task);

// A bias or mask as it travels, dense; a shared axis has one element.
struct DenseBiasOrMask {
  std::int64_t heads, rows, keys;

  std::int64_t elements() const { return heads * rows * keys; }
  BiasOrMaskStrides strides() const {
    return {heads > 1 ? rows * keys : 0, rows > 1 ? static_cast<int>(keys) : 0, keys > 1 ? 1 : 0};
  }
};
template <typename View>
DenseBiasOrMask DenseBiasOrMaskOf(const AttentionTask& task, const View& view) {
  return {view.head_stride != 0 ? task.params.num_q_heads : 1,
          view.row_stride != 0 ? task.q_len : 1, view.key_stride != 0 ? task.kv_len : 1};
}

// The device's view of a task, without addresses.
DeviceTask DescribeTask(const AttentionTask& task);

// The widest heads that kernels are compiled for.
inline constexpr int kMaxHeadDim = 256;

// UNIMPLEMENTED where kernels lack what the contract has: wider heads, values that are prefixes of
// their keys, more keys than they can count.
absl::Status CheckLimits(const AttentionParams& params, std::int64_t kv_len);
// The same of appends that make sense.
absl::Status CheckAppends(std::span<const KvAppendTask> tasks);
// OK if a plan can be made of them. INVALID_ARGUMENT and UNIMPLEMENTED name the task and the field.
absl::Status CheckTasks(std::span<const AttentionTask> tasks);

// The errors of CheckTasks.
absl::StatusOr<std::unique_ptr<CudaPlan>> MakeCudaPlan(std::span<const AttentionTask> tasks,
                                                       const PlanOptions& options);

// A plan that writes the weights of queries [q_begin, q_end).
absl::StatusOr<std::unique_ptr<CudaPlan>> MakeWeightsPlan(const WeightsTask& task);

// Cuts `num_tokens` tokens of an append into items.
inline constexpr std::int64_t kAppendTokens = 64;
void AddAppendItems(int append, int num_kv_heads, std::int64_t num_tokens,
                    std::vector<AppendItem>* items);

}  // namespace attention::cuda
