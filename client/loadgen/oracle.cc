#include "client/loadgen/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/reference/dtype_epsilon.h"
#include "kernels/reference/reference_attention.h"

namespace attention::loadgen {
namespace {

absl::Status CheckForm(const AttentionCase& request, const client::Tensor& output) {
  const ShapeOptions& shape = request.shape;
  const client::Shape expected = {shape.q_len, shape.num_q_heads, shape.head_dim_v};
  if (output.shape() != expected) {
    return absl::DataLossError(absl::StrCat("output has shape [",
                                            absl::StrJoin(output.shape(), ", "), "], expected [",
                                            absl::StrJoin(expected, ", "), "]"));
  }
  if (output.dtype() != ToClientDType(shape.dtype)) {
    return absl::DataLossError(absl::StrCat("output has dtype ",
                                            std::string(client::DTypeName(output.dtype())),
                                            ", expected ", std::string(DTypeName(shape.dtype))));
  }
  return absl::OkStatus();
}

absl::Status CheckFinite(const std::vector<float>& values) {
  const auto wrong =
      std::find_if_not(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
  if (wrong == values.end()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("output element ", wrong - values.begin(), " is ", *wrong, ", expected finite"));
}

double Norm(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

// One head's row [head_dim_v].
//
// Errors are measured against the row's norm. Where values cancel, that norm can be near zero by
// chance; a mean of kv_len independent values of variance 1 has an expected norm of at least
// sqrt(head_dim_v / kv_len), which is the least that is divided by.
absl::Status CompareRow(std::span<const float> actual, std::span<const double> expected,
                        const ShapeOptions& shape) {
  std::vector<double> errors(expected.size());
  for (std::size_t i = 0; i < errors.size(); ++i) {
    errors[i] = static_cast<double>(actual[i]) - expected[i];
  }
  const double least_norm = std::sqrt(static_cast<double>(shape.head_dim_v) /
                                      static_cast<double>(std::max<std::int64_t>(shape.kv_len, 1)));
  const double error = Norm(errors) / std::max(Norm(expected), least_norm);
  const double bound = RelativeTolerance(shape.dtype, shape.head_dim_qk, shape.kv_len);
  if (error <= bound) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("relative error ", error, ", expected at most ", bound));
}

// `task` has one query; `actual` is its answer [num_q_heads, head_dim_v].
absl::Status CheckQuery(const AttentionTask& task, std::span<const float> actual,
                        const ShapeOptions& shape) {
  const reference::ReferenceResult expected = reference::ReferenceAttention(task);
  const auto head_dim_v = static_cast<std::size_t>(shape.head_dim_v);
  for (int head = 0; head < shape.num_q_heads; ++head) {
    const std::size_t begin = static_cast<std::size_t>(head) * head_dim_v;
    const absl::Status status = CompareRow(actual.subspan(begin, head_dim_v),
                                           std::span(expected.o).subspan(begin, head_dim_v), shape);
    if (!status.ok()) {
      return absl::DataLossError(absl::StrCat("head ", head, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

// The request's keys and values as its session's cache holds them: a page of the reference backend.
std::vector<std::uint8_t> CacheOf(const reference::ReferencePage& page, const std::uint8_t* k,
                                  const std::uint8_t* v, DType dtype) {
  const KvGeometry& geometry = page.geometry;
  const auto row_bytes = [&](int dim) {
    return dim * static_cast<std::int64_t>(DTypeBytes(dtype));
  };
  std::vector<std::uint8_t> cache(page.bytes());
  for (std::int64_t token = 0; token < page.page_size; ++token) {
    for (int head = 0; head < geometry.num_kv_heads; ++head) {
      page.StoreRow(cache.data(), page.KeyIndex(token, head, 0), page.KeyScaleIndex(token, head), k,
                    dtype, geometry.head_dim_qk);
      page.StoreRow(cache.data(), page.ValueIndex(token, head, 0),
                    page.ValueScaleIndex(token, head), v, dtype, geometry.head_dim_v);
      k += row_bytes(geometry.head_dim_qk);
      v += row_bytes(geometry.head_dim_v);
    }
  }
  return cache;
}

}  // namespace

double RelativeTolerance(DType dtype, std::int64_t head_dim_qk, std::int64_t kv_len) {
  const double roundings =
      16 + std::sqrt(static_cast<double>(head_dim_qk)) + std::sqrt(static_cast<double>(kv_len));
  return 2 * DTypeEpsilon(dtype) + roundings * DTypeEpsilon(DType::kFloat32);
}

std::vector<std::int64_t> RowsToCheck(const AttentionCase& request) {
  const ShapeOptions& shape = request.shape;
  const std::int64_t multiplies_per_row =
      shape.kv_len * shape.num_q_heads * (std::int64_t{shape.head_dim_qk} + shape.head_dim_v);
  const std::int64_t count = std::clamp<std::int64_t>(kMaxMultiplies / multiplies_per_row, 2,
                                                      std::max<std::int64_t>(2, shape.q_len));
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < count; ++i) rows.push_back(i * (shape.q_len - 1) / (count - 1));
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  return rows;
}

CheckedAnswer CheckAnswer(const TensorPool& pool, const AttentionCase& request,
                          const client::Tensor& output) {
  CheckedAnswer checked;
  checked.status = CheckForm(request, output);
  if (!checked.status.ok()) return checked;
  const std::vector<float> actual = output.ToFloats();
  checked.status = CheckFinite(actual);

  const ShapeOptions& shape = request.shape;
  const std::vector<std::uint8_t> k = pool.Gather(request.k_offset, shape.kv_len * request.k_row());
  const std::vector<std::uint8_t> v = pool.Gather(request.v_offset, shape.kv_len * request.v_row());
  AttentionTask task = TaskOf(request);
  const std::int64_t first_query_position = task.first_query_position;
  task.q_len = 1;
  task.k = DenseRows(k.data(), shape.dtype, shape.num_kv_heads, shape.head_dim_qk);
  task.v = DenseRows(v.data(), shape.dtype, shape.num_kv_heads, shape.head_dim_v);
  std::vector<std::uint8_t> cache;
  void* pages[1];
  if (task.params.kv_dtype != shape.dtype) {
    const reference::ReferencePage page{task.params.kv_geometry(), shape.kv_len};
    cache = CacheOf(page, k.data(), v.data(), shape.dtype);
    pages[0] = cache.data();
    task.kv_pages = {pages, 1, page.page_size};
  }
  for (const std::int64_t row : RowsToCheck(request)) {
    if (!checked.status.ok()) return checked;
    task.q = DenseRows(pool.At(request.q_offset + row * request.q_row()), shape.dtype,
                       shape.num_q_heads, shape.head_dim_qk);
    task.first_query_position = first_query_position + row;
    const std::size_t row_size = static_cast<std::size_t>(shape.num_q_heads) * shape.head_dim_v;
    checked.status = CheckQuery(
        task, std::span(actual).subspan(static_cast<std::size_t>(row) * row_size, row_size), shape);
    if (!checked.status.ok()) {
      checked.status =
          absl::DataLossError(absl::StrCat("query ", row, ", ", checked.status.message()));
    }
    ++checked.rows_checked;
  }
  return checked;
}

}  // namespace attention::loadgen
