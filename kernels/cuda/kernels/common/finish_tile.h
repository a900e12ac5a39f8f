// The end of an item, after its last key: parts of a tile that warps computed are merged, ranges
// that blocks computed are merged, outputs and log-sum-exps are written.
//
// Every merge takes its parts from left to right by one formula. With M the greatest maximum,
//
//   sum = sum over parts of exp(m_i - M) sum_i        o = sum over parts of exp(m_i - M) o_i
//
// a part that saw nothing has m_i = -inf and adds zeros, so which parts exist does not show. The
// block that comes last merges the ranges, but which one that is does not show either.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/scores.h"

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
  float origin;        // the greatest score or sink logit, or 0 where there is none
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
    origin = OriginOf(max);
    lse = sum == 0.0f ? MinusInfinity() : origin + Log(sum);
  }

  ATTENTION_DEVICE void WriteOutput(int channel, float o) const {
    // Adding zero makes both zeros one.
    const float value = sum == 0.0f ? 0.0f : o * factor / sum + 0.0f;
    FloatToElement(task.o, task.o_dtype, index * task.head_dim_v + channel, value);
  }
  ATTENTION_DEVICE void WriteLse() const {
    if (task.lse != nullptr) task.lse[index] = lse;
  }
  ATTENTION_DEVICE void WriteTotals() const {
    task.totals[2 * index] = origin;
    task.totals[2 * index + 1] = sum == 0.0f ? 0.0f : 1.0f / sum;
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

// A row's partial results of all ranges. A lane reads the maximum and the sum of a range, and what
// it merges of the output for several ranges at once: they are under way together.
struct RowPartials {
  static constexpr int kLaneChannels = 4;  // of 128
  static constexpr int kAhead = 4;         // ranges

  const float* first;  // of range 0
  std::int64_t stride;
  int num_ranges;
  int lane;

  ATTENTION_DEVICE float At(int range, int index) const {
    return LoadFromOtherBlock(first + range * stride + index);
  }
  // The maximum of range `begin` + lane.
  ATTENTION_DEVICE float MaxOf(int begin) const {
    return begin + lane < num_ranges ? At(begin + lane, 0) : MinusInfinity();
  }

  ATTENTION_DEVICE RowTotal Total() const {
    RowTotal total{MinusInfinity(), 0.0f};
    for (int begin = 0; begin < num_ranges; begin += 32) total.max = Max(total.max, MaxOf(begin));
    for (int mask = 1; mask < 32; mask *= 2) {
      total.max = Max(total.max, ShuffleXor(total.max, mask));
    }
    const float origin = OriginOf(total.max);
    for (int begin = 0; begin < num_ranges; begin += 32) {
      const float factor = Correction(MaxOf(begin), origin);
      const float sum = begin + lane < num_ranges ? At(begin + lane, 1) : 0.0f;
      const int count = Min(32, num_ranges - begin);
      for (int i = 0; i < count; ++i) {
        total.sum = Fma(ShuffleFrom(sum, i), ShuffleFrom(factor, i), total.sum);
      }
    }
    return total;
  }

  // Channels `channel` + lane + 32 c. A lane without a channel or range adds zero times zero.
  ATTENTION_DEVICE void Merge(float max, int channel, int end, float (&o)[kLaneChannels]) const {
    const float origin = OriginOf(max);
#pragma unroll
    for (float& sum : o) sum = 0.0f;
    for (int begin = 0; begin < num_ranges; begin += 32) {
      const float factor = Correction(MaxOf(begin), origin);
      const int count = Min(32, num_ranges - begin);
#pragma unroll 1
      for (int i = 0; i < count; i += kAhead) {
        float parts[kAhead][kLaneChannels];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
#pragma unroll
          for (int c = 0; c < kLaneChannels; ++c) {
            const int at = channel + lane + 32 * c;
            const bool exists = i + j < count && at < end;
            parts[j][c] = exists ? At(begin + i + j, 2 + at) : 0.0f;
          }
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const float range_factor = ShuffleFrom(factor, i + j);
#pragma unroll
          for (int c = 0; c < kLaneChannels; ++c) o[c] = Fma(parts[j][c], range_factor, o[c]);
        }
      }
    }
  }
};

ATTENTION_DEVICE void MergeRanges(const AttendArguments& arguments, const DeviceTask& task,
                                  const WorkItem& item, int lane, int row) {
  const int stride = PartialRowFloats(task.head_dim_v);
  const RowPartials partials{
      arguments.partials + item.partials + static_cast<std::int64_t>(row) * stride,
      static_cast<std::int64_t>(item.num_rows) * stride, item.num_ranges, lane};
  const RowTotal total = partials.Total();
  const RowWriter writer(task, item, row, total);
  if (lane == 0) writer.WriteLse();
  constexpr int kChannels = 32 * RowPartials::kLaneChannels;
  for (int channel = 0; channel < task.head_dim_v; channel += kChannels) {
    float o[RowPartials::kLaneChannels];
    partials.Merge(total.max, channel, task.head_dim_v, o);
#pragma unroll
    for (int c = 0; c < RowPartials::kLaneChannels; ++c) {
      const int at = channel + lane + 32 * c;
      if (at < task.head_dim_v) writer.WriteOutput(at, o[c]);
    }
  }
}

// Called by kThreads threads of the block, of whole warps, after a barrier that follows the last
// write to `parts`. `thread` is which of them calls, `sync` a barrier of theirs.
template <int kThreads, typename Parts, typename Sync>
ATTENTION_DEVICE void FinishTile(const AttendArguments& arguments, const DeviceTask& task,
                                 const WorkItem& item, const Parts& parts, int thread,
                                 const Sync& sync) {
  const int lane = thread % 32, warp = thread / 32;
  if (item.num_ranges == 1) {
    for (int row = warp; row < item.num_rows; row += kThreads / 32) {
      WriteRow(task, item, parts, lane, row);
    }
    return;
  }
  for (int row = warp; row < item.num_rows; row += kThreads / 32) {
    WritePartials(arguments, task, item, parts, lane, row);
  }
  // After the barrier the first thread has seen the writes of all: one waits for memory. All
  // see what it acquired after the second barrier.
  sync();
  if (thread == 0) parts.arrival() = AtomicAddInOrder(arguments.counters + item.counter, 1u);
  sync();
  if (parts.arrival() != static_cast<std::uint32_t>(item.num_ranges - 1)) return;
  for (int row = warp; row < item.num_rows; row += kThreads / 32) {
    MergeRanges(arguments, task, item, lane, row);
  }
}

}  // namespace attention::cuda
