#include "tests/support/wire_oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>

#include "kernels/reference/reference_attention.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

constexpr double kFloat32Slack = 0x1p-18;
constexpr double kNegInf = -std::numeric_limits<double>::infinity();

// How the request's rows divide into sequences.
struct Layout {
  bool is_dense = false;
  std::vector<std::int64_t> q_lens, kv_lens;
  std::int64_t max_q_len = 0, max_kv_len = 0;  // padded lengths in the dense form

  std::int64_t QRow(std::size_t i) const { return Row(q_lens, max_q_len, i); }
  std::int64_t KvRow(std::size_t i) const { return Row(kv_lens, max_kv_len, i); }

 private:
  std::int64_t Row(const std::vector<std::int64_t>& lens, std::int64_t max, std::size_t i) const {
    if (is_dense) return static_cast<std::int64_t>(i) * max;
    return std::accumulate(lens.begin(), lens.begin() + static_cast<std::ptrdiff_t>(i),
                           std::int64_t{0});
  }
};

template <typename Repeated>
std::vector<std::int64_t> LengthsOr(const Repeated& given, std::size_t count,
                                    std::int64_t otherwise) {
  if (given.empty()) return std::vector<std::int64_t>(count, otherwise);
  return {given.begin(), given.end()};
}

Layout LayoutOf(const v1::AttendRequest& request) {
  Layout layout;
  layout.is_dense = request.q().shape_size() == 4;
  const int rows = layout.is_dense ? 1 : 0;
  const std::size_t count = layout.is_dense ? static_cast<std::size_t>(request.q().shape(0)) : 1;
  layout.q_lens = LengthsOr(request.q_lens(), count, request.q().shape(rows));
  layout.kv_lens = LengthsOr(request.kv_lens(), count, request.k().shape(rows));
  layout.max_q_len = layout.is_dense
                         ? request.q().shape(1)
                         : *std::max_element(layout.q_lens.begin(), layout.q_lens.end());
  layout.max_kv_len = layout.is_dense
                          ? request.k().shape(1)
                          : *std::max_element(layout.kv_lens.begin(), layout.kv_lens.end());
  return layout;
}

AttentionParams ParamsOf(const v1::AttendRequest& request) {
  const int rank = request.q().shape_size();
  const v1::AttentionConfig& config = request.config();
  AttentionParams params;
  params.num_q_heads = static_cast<int>(request.q().shape(rank - 2));
  params.num_kv_heads = static_cast<int>(request.k().shape(rank - 2));
  params.head_dim_qk = static_cast<int>(request.q().shape(rank - 1));
  params.head_dim_v = static_cast<int>(request.v().shape(rank - 1));
  params.dtype = params.kv_dtype = FromWire(request.q().dtype());
  params.softmax_scale =
      config.has_softmax_scale()
          ? config.softmax_scale()
          : static_cast<float>(1.0 / std::sqrt(static_cast<double>(params.head_dim_qk)));
  params.soft_cap = config.soft_cap();
  params.is_causal = config.is_causal();
  params.window_left = config.has_window_left() ? config.window_left() : -1;
  params.window_right = config.has_window_right() ? config.window_right() : -1;
  params.sink_tokens = config.sink_tokens();
  return params;
}

// Where sequence `index` begins in a bias or mask, in elements, and how far apart its heads, rows
// and keys are: nowhere along an axis of 1.
struct BiasOrMaskOffsets {
  std::int64_t begin = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t key_stride = 0;
};

BiasOrMaskOffsets OffsetsOf(const v1::Tensor& tensor, std::int64_t index) {
  const int rank = tensor.shape_size();
  const std::int64_t rows = tensor.shape(rank - 2);
  const std::int64_t keys = tensor.shape(rank - 1);
  const std::int64_t area = rows * keys;
  const std::int64_t heads = rank >= 3 ? tensor.shape(rank - 3) : 1;
  const std::int64_t batch = rank == 4 ? tensor.shape(0) : 1;
  return {batch == 1 ? 0 : index * heads * area, heads == 1 ? 0 : area, rows == 1 ? 0 : keys,
          keys == 1 ? 0 : 1};
}

// [rows of a sequence, heads, dim] inside a tensor.
RowsView RowsAt(const v1::Tensor& tensor, std::int64_t row, std::int64_t heads, std::int64_t dim) {
  const DType dtype = FromWire(tensor.dtype());
  const char* data =
      tensor.data().data() + row * heads * dim * static_cast<std::int64_t>(DTypeBytes(dtype));
  return DenseRows(static_cast<const void*>(data), dtype, heads, dim);
}

AttentionTask TaskAt(const v1::AttendRequest& request, const Layout& layout, std::size_t i) {
  const auto index = static_cast<std::int64_t>(i);
  AttentionTask task;
  task.params = ParamsOf(request);
  const AttentionParams& params = task.params;
  task.q_len = layout.q_lens[i];
  task.kv_len = layout.kv_lens[i];
  task.first_query_position = request.first_query_positions().empty()
                                  ? task.kv_len - task.q_len
                                  : request.first_query_positions(static_cast<int>(i));
  task.q = RowsAt(request.q(), layout.QRow(i), params.num_q_heads, params.head_dim_qk);
  task.k = RowsAt(request.k(), layout.KvRow(i), params.num_kv_heads, params.head_dim_qk);
  task.v = RowsAt(request.v(), layout.KvRow(i), params.num_kv_heads, params.head_dim_v);
  const v1::AttentionConfig& config = request.config();
  if (config.has_alibi_slopes()) {
    task.alibi_slopes = reinterpret_cast<const float*>(config.alibi_slopes().data().data());
  }
  if (config.has_sink_logits()) {
    task.sink_logits = reinterpret_cast<const float*>(config.sink_logits().data().data());
  }
  if (request.has_bias()) {
    const BiasOrMaskOffsets at = OffsetsOf(request.bias(), index);
    const DType dtype = FromWire(request.bias().dtype());
    task.bias = {
        request.bias().data().data() + at.begin * static_cast<std::int64_t>(DTypeBytes(dtype)),
        dtype, at.head_stride, at.row_stride, at.key_stride};
  }
  if (request.has_mask()) {
    const BiasOrMaskOffsets at = OffsetsOf(request.mask(), index);
    task.mask = {reinterpret_cast<const std::uint8_t*>(request.mask().data().data()) + at.begin,
                 at.head_stride, at.row_stride, at.key_stride};
  }
  return task;
}

double LargestMagnitude(const v1::Tensor& tensor) {
  double largest = 0;
  for (std::int64_t i = 0; i < NumElements(tensor); ++i) {
    const double value = std::abs(static_cast<double>(ElementAt(tensor, i)));
    if (std::isfinite(value)) largest = std::max(largest, value);
  }
  return largest;
}

double LargestMagnitude(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) {
    if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
  }
  return largest;
}

bool IsWithin(double actual, double expected, double bound) {
  if (std::isnan(expected)) return std::isnan(actual);
  if (std::isinf(expected)) return actual == expected;
  return std::abs(actual - expected) <= bound;
}

// Compares rows [row, row + count) of `tensor`, whose rows have `width` elements.
std::string CompareRows(const char* name, const v1::Tensor& tensor, std::int64_t row,
                        std::int64_t width, const std::vector<double>& expected, double bound) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const std::int64_t index = row * width + static_cast<std::int64_t>(i);
    const double actual = ElementAt(tensor, index);
    if (IsWithin(actual, expected[i], bound)) continue;
    std::ostringstream out;
    out.precision(9);
    out << name << " row " << index / width << " element " << index % width << " is " << actual
        << ", expected " << expected[i] << " within " << bound;
    return out.str();
  }
  return "";
}

std::string CheckForm(const char* name, const v1::Tensor& tensor, v1::DType dtype,
                      const Shape& shape) {
  if (tensor.dtype() == dtype && ShapeOf(tensor) == shape &&
      tensor.data().size() == ZeroTensor(dtype, shape).data().size()) {
    return "";
  }
  return std::string(name) +
         " has another type, shape or size: " + tensor.ShortDebugString().substr(0, 80);
}

std::string CheckForms(const v1::AttendRequest& request, const v1::AttendResponse& response,
                       const AttentionParams& params) {
  Shape rows(request.q().shape().begin(), request.q().shape().end() - 1);
  Shape kv_rows(request.k().shape().begin(), request.k().shape().end() - 1);
  kv_rows.back() = params.num_q_heads;
  Shape output = rows;
  output.push_back(params.head_dim_v);
  std::string error = CheckForm("output", response.output(), request.q().dtype(), output);
  if (response.has_lse() != request.returns().lse()) return "lse is there or missing";
  if (response.has_column_sums() != request.returns().column_sums()) {
    return "column_sums is there or missing";
  }
  if (error.empty() && response.has_lse()) {
    error = CheckForm("lse", response.lse(), v1::DTYPE_FLOAT32, rows);
  }
  if (error.empty() && response.has_column_sums()) {
    error = CheckForm("column_sums", response.column_sums(), v1::DTYPE_FLOAT32, kv_rows);
  }
  return error;
}

// Rows of padding behind a sequence hold 0 in the output and column sums, -inf in the lse.
std::vector<double> Padded(std::vector<double> rows, const Layout& layout, std::int64_t max_rows,
                           std::int64_t width, double fill) {
  if (layout.is_dense) rows.resize(static_cast<std::size_t>(max_rows * width), fill);
  return rows;
}

std::string CompareSequence(const v1::AttendRequest& request, const v1::AttendResponse& response,
                            const Layout& layout, std::size_t i) {
  const AttentionTask task = TaskAt(request, layout, i);
  const AttentionParams& params = task.params;
  const reference::ReferenceResult exact =
      reference::ReferenceAttention(task, {.with_column_sums = request.returns().column_sums()});
  const std::int64_t heads = params.num_q_heads;
  const std::int64_t width = heads * params.head_dim_v;
  const double o_bound = DTypeEpsilon(params.dtype) * LargestMagnitude(exact.o) +
                         kFloat32Slack * LargestMagnitude(request.v());
  std::string error = CompareRows("output", response.output(), layout.QRow(i), width,
                                  Padded(exact.o, layout, layout.max_q_len, width, 0), o_bound);
  if (error.empty() && response.has_lse()) {
    error = CompareRows("lse", response.lse(), layout.QRow(i), heads,
                        Padded(exact.lse, layout, layout.max_q_len, heads, kNegInf),
                        kFloat32Slack * std::max(1.0, LargestMagnitude(exact.lse)));
  }
  if (error.empty() && response.has_column_sums()) {
    error = CompareRows("column_sums", response.column_sums(), layout.KvRow(i), heads,
                        Padded(exact.column_sums, layout, layout.max_kv_len, heads, 0),
                        kFloat32Slack * static_cast<double>(task.q_len));
  }
  return error;
}

}  // namespace

v1::AttendRequest MakeAttendRequest(const WireSpec& spec) {
  const auto rows = [&](const std::vector<std::int64_t>& lens, std::int64_t heads,
                        std::int64_t dim) -> Shape {
    if (!spec.is_dense) {
      return {std::accumulate(lens.begin(), lens.end(), std::int64_t{0}), heads, dim};
    }
    return {static_cast<std::int64_t>(lens.size()), *std::max_element(lens.begin(), lens.end()),
            heads, dim};
  };
  v1::AttendRequest request;
  *request.mutable_q() = RandomTensor(
      spec.dtype, rows(spec.q_lens, spec.num_q_heads, spec.head_dim_qk), 3 * spec.seed);
  *request.mutable_k() = RandomTensor(
      spec.dtype, rows(spec.kv_lens, spec.num_kv_heads, spec.head_dim_qk), 3 * spec.seed + 1);
  *request.mutable_v() = RandomTensor(
      spec.dtype, rows(spec.kv_lens, spec.num_kv_heads, spec.head_dim_v), 3 * spec.seed + 2);
  if (spec.is_dense || spec.q_lens.size() > 1) {
    request.mutable_q_lens()->Add(spec.q_lens.begin(), spec.q_lens.end());
    request.mutable_kv_lens()->Add(spec.kv_lens.begin(), spec.kv_lens.end());
  }
  request.mutable_returns()->set_lse(true);
  return request;
}

std::vector<AttentionTask> TasksOf(const v1::AttendRequest& request) {
  const Layout layout = LayoutOf(request);
  std::vector<AttentionTask> tasks;
  for (std::size_t i = 0; i < layout.q_lens.size(); ++i) {
    tasks.push_back(TaskAt(request, layout, i));
  }
  return tasks;
}

std::string FindMismatch(const v1::AttendRequest& request, const v1::AttendResponse& response) {
  const Layout layout = LayoutOf(request);
  std::string error = CheckForms(request, response, ParamsOf(request));
  for (std::size_t i = 0; i < layout.q_lens.size() && error.empty(); ++i) {
    error = CompareSequence(request, response, layout, i);
    if (!error.empty()) error = "sequence " + std::to_string(i) + ": " + error;
  }
  return error;
}

std::string FindWeightsMismatch(const v1::AttendRequest& request, int index,
                                const v1::Tensor& weights) {
  const AttentionTask task = TaskAt(request, LayoutOf(request), static_cast<std::size_t>(index));
  const std::int64_t heads = task.params.num_q_heads;
  std::string error =
      CheckForm("weights", weights, v1::DTYPE_FLOAT32, {task.q_len, heads, task.kv_len});
  if (!error.empty()) return error;
  const std::vector<double> exact =
      reference::ReferenceAttention(task, {.with_weights = true}).weights;
  error = CompareRows("weights", weights, 0, heads * task.kv_len, exact, kFloat32Slack);
  if (!error.empty() || task.sink_logits != nullptr) return error;
  for (std::int64_t row = 0; row < task.q_len * heads; ++row) {
    double sum = 0;
    for (std::int64_t key = 0; key < task.kv_len; ++key) {
      sum += ElementAt(weights, row * task.kv_len + key);
    }
    if (sum == 0 || std::abs(sum - 1) <= kFloat32Slack * static_cast<double>(task.kv_len)) continue;
    return "weights of row " + std::to_string(row) + " sum to " + std::to_string(sum);
  }
  return "";
}

}  // namespace attention::testing
