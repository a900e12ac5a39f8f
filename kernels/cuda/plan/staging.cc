#include "kernels/cuda/plan/staging.h"

#include <algorithm>
#include <cstring>

#include "kernels/api/rows_cursor.h"

namespace attention::cuda {
namespace {

template <typename T>
T* At(char* base, std::size_t offset) {
  return offset == kNoOffset ? nullptr : reinterpret_cast<T*>(base + offset);
}

template <typename View>
void GatherBiasOrMask(const View& view, std::size_t element, const AttentionTask& task, char* to) {
  const DenseBiasOrMask dense = DenseBiasOrMaskOf(task, view);
  const std::size_t row_bytes = dense.keys * element;
  if (row_bytes == 0) return;
  const auto* from = reinterpret_cast<const char*>(view.data);
  for (std::int64_t head = 0; head < dense.heads; ++head) {
    for (std::int64_t row = 0; row < dense.rows; ++row) {
      const std::int64_t index = head * view.head_stride + row * view.row_stride;
      std::memcpy(to, from + index * static_cast<std::int64_t>(element), row_bytes);
      to += row_bytes;
    }
  }
}

void FillPages(const PlannedTask& planned, RunMemory& memory) {
  void** pages = At<void*>(memory.host_upload.data(), planned.pages);
  if (planned.is_contiguous()) {
    *pages = planned.arena == kNoOffset ? nullptr : memory.scratch.data() + planned.arena;
    return;
  }
  const PagedKvView& kv = planned.task.kv_pages;
  const std::int64_t count = (planned.task.kv_len + kv.page_size - 1) / kv.page_size;
  if (count > 0) std::memcpy(pages, kv.pages, count * sizeof(void*));
}

// The queries of a task that a part has.
struct PartOfTask {
  std::int64_t begin, end;
  bool is_first, is_last;
};

PartOfTask QueriesOf(const CudaPlan& plan, std::size_t part, std::size_t task) {
  const PlanPart &first = plan.parts[part], &next = plan.parts[part + 1];
  const std::int64_t q_len = plan.tasks[task].task.q_len;
  const std::int64_t begin = task == first.task ? first.query : 0;
  const std::int64_t end = task == next.task ? next.query : q_len;
  return {begin, end, begin == 0, end == q_len};
}

// Calls `call` with each task of which the part has queries, and those of no queries in between.
template <typename Call>
void ForEachTask(const CudaPlan& plan, std::size_t part, Call call) {
  const PlanPart& next = plan.parts[part + 1];
  const std::size_t end = next.task + (next.query > 0 ? 1 : 0);
  for (std::size_t i = plan.parts[part].task; i < end; ++i) {
    call(plan.tasks[i], QueriesOf(plan, part, i));
  }
}

// Rows on their way to the device.
struct TravellingRows {
  const RowsView& rows;
  std::int64_t begin, count;
  int heads, dim, padded_dim;
  std::size_t offset;
};

// Gathers them, or leaves them to a copy of their own.
void AddRows(const TravellingRows& travelling, std::size_t direct_bytes, RunMemory& memory,
             std::vector<DirectCopy>& direct) {
  const auto& [rows, begin, count, heads, dim, padded_dim, offset] = travelling;
  const auto element = static_cast<std::int64_t>(DTypeBytes(rows.dtype));
  const auto bytes = static_cast<std::size_t>(count * heads * dim * element);
  const bool is_dense = dim == padded_dim && rows.head_stride == dim &&
                        rows.row_stride == static_cast<std::int64_t>(heads) * dim;
  if (is_dense && bytes >= direct_bytes && memory.device->IsPinned(rows.data)) {
    auto* from =
        static_cast<char*>(const_cast<void*>(rows.data)) + begin * rows.row_stride * element;
    direct.push_back({offset, from, bytes});
    return;
  }
  GatherRows(rows, begin, count, heads, dim, padded_dim, memory.host_upload.data() + offset);
}

// Keys and values that do not lie in pages.
void AddContiguous(const PlannedTask& planned, std::size_t direct_bytes, RunMemory& memory,
                   std::vector<DirectCopy>& direct) {
  if (planned.k == kNoOffset) return;
  const AttentionParams& params = planned.task.params;
  const std::int64_t tokens = planned.kv_end - planned.kv_begin;
  AddRows({planned.task.k, planned.kv_begin, tokens, params.num_kv_heads, params.head_dim_qk,
           params.head_dim_qk, planned.k},
          direct_bytes, memory, direct);
  AddRows({planned.task.v, planned.kv_begin, tokens, params.num_kv_heads, params.head_dim_v,
           params.head_dim_v, planned.v},
          direct_bytes, memory, direct);
}

// Where outputs of the queries go straight; no bytes: they do not.
DirectCopy DirectOutput(const PlannedTask& planned, const PartOfTask& queries,
                        std::size_t direct_bytes, const Device& device) {
  const AttentionTask& task = planned.task;
  if (planned.o == kNoOffset) return {};
  const std::int64_t dim = task.params.head_dim_v, heads = task.params.num_q_heads;
  const std::size_t row_bytes = OutputRowBytes(task);
  const std::size_t bytes = (queries.end - queries.begin) * row_bytes;
  const bool is_dense = task.o.head_stride == dim && task.o.row_stride == heads * dim;
  if (!is_dense || bytes < direct_bytes || !device.IsPinned(task.o.data)) return {};
  return {planned.o + queries.begin * row_bytes,
          static_cast<char*>(task.o.data) + queries.begin * row_bytes, bytes};
}

// Fills in the tensors that all queries of a task share.
void FillTensors(const PlannedTask& planned, RunMemory& memory) {
  const AttentionTask& task = planned.task;
  const AttentionParams& params = task.params;
  char* base = memory.host_upload.data();
  const std::size_t heads_bytes = params.num_q_heads * sizeof(float);
  if (planned.alibi != kNoOffset) {
    std::memcpy(base + planned.alibi, task.alibi_slopes, heads_bytes);
  }
  if (planned.sinks != kNoOffset) std::memcpy(base + planned.sinks, task.sink_logits, heads_bytes);
  if (planned.bias != kNoOffset) {
    GatherBiasOrMask(task.bias, DTypeBytes(task.bias.dtype), task, base + planned.bias);
  }
  if (planned.mask != kNoOffset) {
    GatherBiasOrMask(task.mask, 1, task, base + planned.mask);
  }
}

DeviceTask BindTask(const PlannedTask& planned, const RunMemory& memory) {
  char* upload = memory.upload.data();
  char* results = memory.results.data();
  DeviceTask device = DescribeTask(planned.task);
  device.q = At<char>(upload, planned.q);
  device.o = At<char>(results, planned.o);
  device.lse = At<float>(results, planned.lse);
  device.totals = At<float>(memory.scratch.data(), planned.totals);
  device.pages = At<const char* const>(upload, planned.pages);
  device.page_origin = static_cast<int>(planned.kv_origin);
  device.layout = MakePageLayout(planned.task.params.kv_geometry(), planned.page_size);
  device.alibi_slopes = At<float>(upload, planned.alibi);
  device.sink_logits = At<float>(upload, planned.sinks);
  device.bias = At<char>(upload, planned.bias);
  device.mask = At<std::uint8_t>(upload, planned.mask);
  device.column_sums = At<float>(results, planned.column_sums);
  device.weights = At<float>(results, planned.weights);
  device.weights_q_begin = planned.weights_q_begin;
  device.weights_q_end = planned.weights_q_end;
  return device;
}

DeviceAppend BindAppend(const PlannedTask& planned, const RunMemory& memory) {
  const AttentionTask& task = planned.task;
  DeviceAppend append;
  append.num_kv_heads = task.params.num_kv_heads;
  append.head_dim_qk = task.params.head_dim_qk;
  append.head_dim_v = task.params.head_dim_v;
  append.dtype = task.params.kv_dtype;
  append.k_dtype = task.k.dtype;
  append.v_dtype = task.v.dtype;
  append.k = At<char>(memory.upload.data(), planned.k);
  append.v = At<char>(memory.upload.data(), planned.v);
  append.pages = At<char* const>(memory.upload.data(), planned.pages);
  append.layout = MakePageLayout(task.params.kv_geometry(), planned.page_size);
  append.position = planned.kv_begin - planned.kv_origin;
  return append;
}

template <typename T>
void CopyTable(const std::vector<T>& table, char* to) {
  if (!table.empty()) std::memcpy(to, table.data(), table.size() * sizeof(T));
}

void DeliverOutput(const PlannedTask& planned, std::int64_t begin, std::int64_t end,
                   const char* from) {
  const AttentionTask& task = planned.task;
  const std::int64_t dim = task.params.head_dim_v, heads = task.params.num_q_heads;
  const auto element = static_cast<std::int64_t>(DTypeBytes(task.o.dtype));
  auto* to = static_cast<char*>(task.o.data);
  from += begin * heads * dim * element;
  if (task.o.head_stride == dim && task.o.row_stride == heads * dim) {
    std::memcpy(to + begin * heads * dim * element, from, (end - begin) * heads * dim * element);
    return;
  }
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      std::memcpy(to + (row * task.o.row_stride + head * task.o.head_stride) * element, from,
                  dim * element);
      from += dim * element;
    }
  }
}

// Delivers what is there when all queries of a task have been computed.
void DeliverSums(const PlannedTask& planned, const char* base) {
  const AttentionTask& task = planned.task;
  const std::size_t heads_bytes = task.params.num_q_heads * sizeof(float);
  if (planned.lse != kNoOffset) {
    std::memcpy(task.lse, base + planned.lse, task.q_len * heads_bytes);
  }
  if (planned.column_sums != kNoOffset && task.kv_len > 0) {
    std::memcpy(task.column_sums, base + planned.column_sums, task.kv_len * heads_bytes);
  } else if (task.column_sums != nullptr) {
    std::fill_n(task.column_sums, task.kv_len * task.params.num_q_heads, 0.0f);
  }
}

}  // namespace

void GatherRows(const RowsView& rows, std::int64_t first, std::int64_t count, int heads, int dim,
                int padded_dim, char* to) {
  const auto element = static_cast<std::int64_t>(DTypeBytes(rows.dtype));
  const auto* from = static_cast<const char*>(rows.data) + first * rows.row_stride * element;
  if (dim == padded_dim && rows.head_stride == dim && rows.row_stride == heads * dim) {
    std::memcpy(to, from, count * heads * dim * element);
    return;
  }
  for (std::int64_t row = 0; row < count; ++row) {
    for (int head = 0; head < heads; ++head) {
      std::memcpy(to, from + (row * rows.row_stride + head * rows.head_stride) * element,
                  dim * element);
      std::memset(to + dim * element, 0, (padded_dim - dim) * element);
      to += padded_dim * element;
    }
  }
}

DType GatheredType(const RowsView& rows, std::span<const RowsPiece> pieces) {
  if (pieces.empty()) return rows.dtype;
  const DType first = pieces.front().rows.dtype;
  const bool is_alike = std::all_of(pieces.begin(), pieces.end(), [first](const RowsPiece& piece) {
    return piece.rows.dtype == first;
  });
  return is_alike ? first : DType::kFloat32;
}

void GatherPieces(const RowsView& rows, std::span<const RowsPiece> pieces, std::int64_t count,
                  int heads, int dim, char* to) {
  const DType dtype = GatheredType(rows, pieces);
  if (pieces.empty()) {
    GatherRows(rows, 0, count, heads, dim, dim, to);
    return;
  }
  const std::size_t row_bytes = dim * DTypeBytes(dtype);
  RowsCursor cursor(rows, pieces, /*first_row=*/0);
  for (std::int64_t row = 0; row < count; ++row) {
    for (int head = 0; head < heads; ++head) {
      const char* from = cursor.At(row, head);
      if (cursor.dtype() == dtype) {
        std::memcpy(to, from, row_bytes);
      } else {
        for (int i = 0; i < dim; ++i) {
          StoreElement(to, dtype, i, LoadElement(from, cursor.dtype(), i));
        }
      }
      to += row_bytes;
    }
  }
}

void FillTables(const CudaPlan& plan, RunMemory& memory) {
  char* base = memory.host_upload.data();
  std::vector<DeviceTask> tasks;
  std::vector<DeviceAppend> appends;
  for (const PlannedTask& planned : plan.tasks) {
    tasks.push_back({});
    appends.push_back({});
    if (planned.q == kNoOffset) continue;  // nothing to compute
    tasks.back() = BindTask(planned, memory);
    if (planned.k != kNoOffset) appends.back() = BindAppend(planned, memory);
  }
  CopyTable(tasks, base + plan.device_tasks);
  CopyTable(plan.items, base + plan.device_items);
  CopyTable(plan.totals, base + plan.device_totals);
  CopyTable(plan.probes, base + plan.device_probes);
  CopyTable(appends, base + plan.device_appends);
  CopyTable(plan.append_items, base + plan.device_append_items);
  std::memset(base + plan.counters, 0, plan.num_counters * sizeof(std::uint32_t));
}

std::vector<DirectCopy> FillPart(const CudaPlan& plan, std::size_t part, std::size_t direct_bytes,
                                 RunMemory& memory) {
  std::vector<DirectCopy> direct;
  ForEachTask(plan, part, [&](const PlannedTask& planned, const PartOfTask& queries) {
    if (planned.q == kNoOffset) return;
    const AttentionTask& task = planned.task;
    if (queries.is_first) {
      FillPages(planned, memory);
      FillTensors(planned, memory);
      AddContiguous(planned, direct_bytes, memory, direct);
    }
    const AttentionParams& params = task.params;
    AddRows(
        {task.q, queries.begin, queries.end - queries.begin, params.num_q_heads, params.head_dim_qk,
         PadDim(params.head_dim_qk), planned.q + queries.begin * QueryRowBytes(task)},
        direct_bytes, memory, direct);
  });
  return direct;
}

std::vector<DirectCopy> DirectResults(const CudaPlan& plan, std::size_t part,
                                      std::size_t direct_bytes, const Device& device) {
  std::vector<DirectCopy> direct;
  ForEachTask(plan, part, [&](const PlannedTask& planned, const PartOfTask& queries) {
    const DirectCopy output = DirectOutput(planned, queries, direct_bytes, device);
    if (output.bytes > 0) direct.push_back(output);
  });
  return direct;
}

void DeliverPart(const CudaPlan& plan, std::size_t part, std::size_t direct_bytes,
                 const RunMemory& memory) {
  const char* base = memory.host_results.data();
  ForEachTask(plan, part, [&](const PlannedTask& planned, const PartOfTask& queries) {
    const bool is_direct = DirectOutput(planned, queries, direct_bytes, *memory.device).bytes > 0;
    if (planned.o != kNoOffset && !is_direct) {
      DeliverOutput(planned, queries.begin, queries.end, base + planned.o);
    }
    if (queries.is_last) DeliverSums(planned, base);
  });
}

}  // namespace attention::cuda
