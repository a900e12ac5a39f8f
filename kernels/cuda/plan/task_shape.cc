// The choice of a task's kernel, and how the task looks to it.
#include <algorithm>
#include <limits>

#include "kernels/cuda/plan/plan.h"

namespace attention::cuda {
namespace {

constexpr int kDecodeRows = 16;

DType QueryTypeOf(const AttentionTask& task) {
  return task.q.data != nullptr ? task.q.dtype : task.params.dtype;
}

DType OutputTypeOf(const AttentionTask& task) {
  return task.o.data != nullptr ? task.o.dtype : task.params.dtype;
}

// True if matrix instructions of a 16-bit type lose nothing that the output type would show.
bool SuitsMma(const AttentionTask& task) {
  const DType dtype = QueryTypeOf(task), kv_dtype = task.params.kv_dtype;
  if (OutputTypeOf(task) != dtype) return false;
  if (dtype == DType::kFloat16) return kv_dtype == DType::kFloat16;
  return dtype == DType::kBFloat16 && (kv_dtype == DType::kBFloat16 || HasRowScales(kv_dtype));
}

// True if rows of keys and values are as long as a kernel's own.
bool HasCompiledDims(const AttentionParams& params) {
  const int dim = params.head_dim_qk;
  return params.head_dim_v == dim && (dim == 64 || dim == 128 || dim == 256);
}

// Prefill that the instructions of a warpgroup serve: one 16-bit type throughout, rows that fill
// lines of 128 bytes (page_layout.h), and as many as the kernel counts.
bool SuitsWgmma(const AttentionTask& task) {
  const AttentionParams& params = task.params;
  return !IsSplit(task) && params.kv_dtype == QueryTypeOf(task) && HasCompiledDims(params) &&
         task.q_len <= std::numeric_limits<int>::max() / params.group_size();
}

}  // namespace

std::size_t QueryRowBytes(const AttentionTask& task) {
  return task.params.num_q_heads * PadDim(task.params.head_dim_qk) * DTypeBytes(QueryTypeOf(task));
}

std::size_t OutputRowBytes(const AttentionTask& task) {
  return task.params.num_q_heads * task.params.head_dim_v * DTypeBytes(OutputTypeOf(task));
}

KernelId ChooseKernel(const AttentionTask& task, bool has_wgmma) {
  const AttentionParams& params = task.params;
  KernelId id;
  const int dim = std::max(params.head_dim_qk, params.head_dim_v);
  id.head_dim = dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
  if (!SuitsMma(task)) {
    id.family = KernelFamily::kAttendFloat;
    return id;
  }
  id.dtype = QueryTypeOf(task);
  id.kv_dtype = params.kv_dtype;
  if (task.q_len * params.group_size() <= kDecodeRows) {
    const bool is_bulk = has_wgmma && HasCompiledDims(params);
    id.family = is_bulk ? KernelFamily::kAttendDecodeBulk : KernelFamily::kAttendDecode;
    id.tile_rows = kDecodeRows;
  } else if (has_wgmma && SuitsWgmma(task)) {
    id.family = KernelFamily::kAttendWgmma;
    id.tile_rows = 128;
  } else {
    id.family = KernelFamily::kAttendMma;
    id.tile_rows = 64;
  }
  return id;
}

bool IsSplit(const AttentionTask& task) {
  return task.q_len * task.params.group_size() <= kMaxSplitRows;
}

DeviceTask DescribeTask(const AttentionTask& task) {
  const AttentionParams& params = task.params;
  DeviceTask device;
  device.num_q_heads = params.num_q_heads;
  device.num_kv_heads = params.num_kv_heads;
  device.group = params.group_size();
  device.head_dim_qk = params.head_dim_qk;
  device.head_dim_v = params.head_dim_v;
  device.softmax_scale = params.softmax_scale;
  device.soft_cap = params.soft_cap;
  device.is_causal = params.is_causal ? 1 : 0;
  device.window_left = params.window_left;
  device.window_right = params.window_right;
  device.sink_tokens = params.sink_tokens;
  device.first_query_position = task.first_query_position;
  device.q_len = task.q_len;
  device.kv_len = static_cast<int>(task.kv_len);
  device.kv_begin = static_cast<int>(task.kv_begin);
  device.q_dtype = QueryTypeOf(task);
  device.o_dtype = OutputTypeOf(task);
  device.kv_dtype = params.kv_dtype;
  device.bias_dtype = task.bias.dtype;
  device.bias_strides = DenseBiasOrMaskOf(task, task.bias).strides();
  device.mask_strides = DenseBiasOrMaskOf(task, task.mask).strides();
  return device;
}

}  // namespace attention::cuda
