// What follows the last key of an item: parts of a tile that warps computed are merged, ranges that
// blocks computed are merged, outputs and log-sum-exps are written.
//
// Every merge takes its parts from left to right by one formula. With M the greatest maximum,
//
//   sum = sum over parts of exp(m_i - M) sum_i        o = sum over parts of exp(m_i - M) o_i
//
// a part that saw nothing has m_i = -inf and adds zeros, so which parts exist does not show. The
// block that comes last merges the ranges, but which one that is does not show either.
#pragma once

#include <cstdint>

#include "kernels/cuda/tile/scores.h"

namespace attention::cuda {

// Parts of a tile in shared memory: [kParts][kRows] rows of `kStride` floats, maxima and sums.
template <int kPartsOfTile, int kRowsOfTile, int kHeadDim>
struct TileParts {
  static constexpr int kParts = kPartsOfTile;
  static constexpr int kRows = kRowsOfTile;
  // Eight rows of a fragment's store fall into different banks.
  static constexpr int kStride = kHeadDim + 8;
  static constexpr int kFloats = kParts * kRows * (kStride + 2) + 1;
  static constexpr int kBytes = kFloats * static_cast<int>(sizeof(float));

  float* memory;

  ATTENTION_DEVICE float* o(int part, int row) const {
    return memory + (part * kRows + row) * kStride;
  }
  ATTENTION_DEVICE float& max(int part, int row) const {
    return memory[kParts * kRows * kStride + part * kRows + row];
  }
  ATTENTION_DEVICE float& sum(int part, int row) const {
    return memory[kParts * kRows * (kStride + 1) + part * kRows + row];
  }
  ATTENTION_DEVICE std::uint32_t& arrival() const {
    return reinterpret_cast<std::uint32_t*>(memory)[kParts * kRows * (kStride + 2)];
  }
};

struct RowTotal {
  float max;
  float sum;
};

// A row's maximum and sum over parts, read by `max_of(part)` and `sum_of(part)`.
template <typename MaxOf, typename SumOf>
ATTENTION_DEVICE RowTotal TotalOf(int parts, const MaxOf& max_of, const SumOf& sum_of) {
  RowTotal total{MinusInfinity(), 0.0f};
  for (int part = 0; part < parts; ++part) total.max = Max(total.max, max_of(part));
  const float origin = OriginOf(total.max);
  for (int part = 0; part < parts; ++part) {
    total.sum = Fma(sum_of(part), Correction(max_of(part), origin), total.sum);
  }
  return total;
}

template <typename MaxOf, typename OutputOf>
ATTENTION_DEVICE float MergedOutput(int parts, float max, const MaxOf& max_of,
                                    const OutputOf& output_of) {
  const float origin = OriginOf(max);
  float o = 0.0f;
  for (int part = 0; part < parts; ++part) {
    o = Fma(output_of(part), Correction(max_of(part), origin), o);
  }
  return o;
}

// A row of the task's outputs, divided by its denominator, and its log-sum-exp.
struct RowWriter {
  const DeviceTask& task;
  std::int64_t index;  // query * num_q_heads + head
  float factor;        // of the unnormalised output
  float sum;           // the denominator
  float lse;

  ATTENTION_DEVICE RowWriter(const DeviceTask& row_task, const WorkItem& item, int row,
                             RowTotal total)
      : RowWriter(row_task, (item.row_begin + row) / row_task.group,
                  item.kv_head * row_task.group +
                      static_cast<int>((item.row_begin + row) % row_task.group),
                  total) {}

  ATTENTION_DEVICE RowWriter(const DeviceTask& row_task, std::int64_t query, int head,
                             RowTotal total)
      : task(row_task) {
    index = query * task.num_q_heads + head;
    factor = 1.0f;
    sum = total.sum;
    float max = total.max;
    if (task.sink_logits != nullptr) {
      const float sink = task.sink_logits[head];
      max = Max(max, sink);
      factor = Correction(total.max, OriginOf(max));
      sum = Fma(sum, factor, Correction(sink, OriginOf(max)));
    }
    lse = sum == 0.0f ? MinusInfinity() : OriginOf(max) + Log(sum);
  }

  ATTENTION_DEVICE void WriteOutput(int channel, float o) const {
    // Adding zero makes both zeros one.
    const float value = sum == 0.0f ? 0.0f : o * factor / sum + 0.0f;
    FloatToElement(task.o, task.o_dtype, index * task.head_dim_v + channel, value);
  }
  ATTENTION_DEVICE void WriteLse() const {
    if (task.lse != nullptr) task.lse[index] = lse;
  }
};

template <typename Parts>
ATTENTION_DEVICE void WritePartials(const AttendArguments& arguments, const DeviceTask& task,
                                    const WorkItem& item, const Parts& parts, int lane, int row) {
  const int stride = PartialRowFloats(task.head_dim_v);
  float* out = arguments.partials + item.partials +
               (static_cast<std::int64_t>(item.range) * item.num_rows + row) * stride;
  const auto max_of = [&](int part) { return parts.max(part, row); };
  const RowTotal total =
      TotalOf(Parts::kParts, max_of, [&](int part) { return parts.sum(part, row); });
  if (lane == 0) {
    out[0] = total.max;
    out[1] = total.sum;
  }
  for (int channel = lane; channel < task.head_dim_v; channel += 32) {
    out[2 + channel] = MergedOutput(Parts::kParts, total.max, max_of,
                                    [&](int part) { return parts.o(part, row)[channel]; });
  }
}

template <typename Parts>
ATTENTION_DEVICE void WriteRow(const DeviceTask& task, const WorkItem& item, const Parts& parts,
                               int lane, int row) {
  const auto max_of = [&](int part) { return parts.max(part, row); };
  const RowTotal total =
      TotalOf(Parts::kParts, max_of, [&](int part) { return parts.sum(part, row); });
  const RowWriter writer(task, item, row, total);
  if (lane == 0) writer.WriteLse();
  for (int channel = lane; channel < task.head_dim_v; channel += 32) {
    writer.WriteOutput(channel, MergedOutput(Parts::kParts, total.max, max_of, [&](int part) {
                         return parts.o(part, row)[channel];
                       }));
  }
}

ATTENTION_DEVICE void MergeRanges(const AttendArguments& arguments, const DeviceTask& task,
                                  const WorkItem& item, int lane, int row) {
  const int stride = PartialRowFloats(task.head_dim_v);
  const float* first = arguments.partials + item.partials + static_cast<std::int64_t>(row) * stride;
  const std::int64_t range_stride = static_cast<std::int64_t>(item.num_rows) * stride;
  const auto max_of = [&](int range) { return LoadFromOtherBlock(first + range * range_stride); };
  const RowTotal total = TotalOf(item.num_ranges, max_of, [&](int range) {
    return LoadFromOtherBlock(first + range * range_stride + 1);
  });
  const RowWriter writer(task, item, row, total);
  if (lane == 0) writer.WriteLse();
  for (int channel = lane; channel < task.head_dim_v; channel += 32) {
    writer.WriteOutput(channel, MergedOutput(item.num_ranges, total.max, max_of, [&](int range) {
                         return LoadFromOtherBlock(first + range * range_stride + 2 + channel);
                       }));
  }
}

// Called by all threads of the block after a barrier that follows the last write to `parts`.
template <int kThreads, typename Parts>
ATTENTION_DEVICE void FinishTile(const AttendArguments& arguments, const DeviceTask& task,
                                 const WorkItem& item, const Parts& parts) {
  const int lane = ThreadIndex() % 32, warp = ThreadIndex() / 32;
  if (item.num_ranges == 1) {
    for (int row = warp; row < item.num_rows; row += kThreads / 32) {
      WriteRow(task, item, parts, lane, row);
    }
    return;
  }
  for (int row = warp; row < item.num_rows; row += kThreads / 32) {
    WritePartials(arguments, task, item, parts, lane, row);
  }
  ThreadFence();
  SyncThreads();
  if (ThreadIndex() == 0) {
    parts.arrival() = AtomicAdd(arguments.counters + item.counter, 1u);
    ThreadFence();
  }
  SyncThreads();
  if (parts.arrival() != static_cast<std::uint32_t>(item.num_ranges - 1)) return;
  for (int row = warp; row < item.num_rows; row += kThreads / 32) {
    MergeRanges(arguments, task, item, lane, row);
  }
}

}  // namespace attention::cuda
