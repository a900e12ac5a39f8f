#include "kernels/reference/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/api/quantized_row.h"

namespace attention::reference {
namespace {

constexpr double kNegInf = -std::numeric_limits<double>::infinity();

double LoadKey(const AttentionTask& task, std::int64_t key, int head, int dim) {
  if (task.kv_pages.pages == nullptr) {
    return LoadElement(task.k.data, task.k.dtype,
                       key * task.k.row_stride + head * task.k.head_stride + dim);
  }
  const ReferencePage page{task.params.kv_geometry(), task.kv_pages.page_size};
  const std::int64_t token = key % page.page_size;
  return page.Load(task.kv_pages.pages[key / page.page_size], page.KeyIndex(token, head, dim),
                   page.KeyScaleIndex(token, head));
}

double LoadValue(const AttentionTask& task, std::int64_t key, int head, int channel) {
  if (task.params.value_is_key_prefix) return LoadKey(task, key, head, channel);
  if (task.kv_pages.pages == nullptr) {
    return LoadElement(task.v.data, task.v.dtype,
                       key * task.v.row_stride + head * task.v.head_stride + channel);
  }
  const ReferencePage page{task.params.kv_geometry(), task.kv_pages.page_size};
  const std::int64_t token = key % page.page_size;
  return page.Load(task.kv_pages.pages[key / page.page_size], page.ValueIndex(token, head, channel),
                   page.ValueScaleIndex(token, head));
}

// Straight from the definition in attention_params.h, on purpose without VisibleKeysOf.
bool IsVisible(const AttentionTask& task, int head, std::int64_t query, std::int64_t key) {
  const AttentionParams& params = task.params;
  const std::int64_t position = task.position(query);
  const std::int64_t key_position = task.key_position(key);
  if (key < task.kv_begin || key >= task.kv_len) return false;
  if (task.IsDraft(key) && !task.tree.IsAncestor(query, key - task.first_query_position)) {
    return false;
  }
  if (params.is_causal && key_position > position) return false;
  if (params.window_left >= 0 && key_position < position - params.window_left &&
      key_position >= params.sink_tokens) {
    return false;
  }
  if (params.window_right >= 0 && key_position > position + params.window_right) return false;
  if (task.mask.data != nullptr &&
      task.mask.data[head * task.mask.head_stride + query * task.mask.row_stride +
                     key * task.mask.key_stride] == 0) {
    return false;
  }
  return true;
}

// A sum of finite numbers stays within float32, in which the backends compute.
double Saturated(double score) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return std::isfinite(score) ? std::clamp(score, -kMost, kMost) : score;
}

double Score(const AttentionTask& task, int head, std::int64_t query, std::int64_t key) {
  const AttentionParams& params = task.params;
  const int kv_head = head / params.group_size();
  double s = 0;
  for (int dim = 0; dim < params.head_dim_qk; ++dim) {
    s += LoadElement(task.q.data, task.q.dtype,
                     query * task.q.row_stride + head * task.q.head_stride + dim) *
         LoadKey(task, key, kv_head, dim);
  }
  s *= params.softmax_scale;
  if (params.soft_cap > 0) s = params.soft_cap * std::tanh(s / params.soft_cap);
  if (task.alibi_slopes != nullptr) {
    s = Saturated(s + static_cast<double>(task.alibi_slopes[head]) *
                          static_cast<double>(task.key_position(key) - task.position(query)));
  }
  if (task.bias.data != nullptr) {
    s = Saturated(s + LoadElement(task.bias.data, task.bias.dtype,
                                  head * task.bias.head_stride + query * task.bias.row_stride +
                                      key * task.bias.key_stride));
  }
  return s;
}

}  // namespace

void AddReferenceRow(const AttentionTask& task, std::int64_t query, int head,
                     ReferenceResult* result) {
  const AttentionParams& params = task.params;
  const std::int64_t row = query * params.num_q_heads + head;
  std::vector<double> p(task.kv_len, kNegInf);
  double max = task.sink_logits != nullptr ? task.sink_logits[head] : kNegInf;
  for (std::int64_t key = 0; key < task.kv_len; ++key) {
    if (!IsVisible(task, head, query, key)) continue;
    p[key] = Score(task, head, query, key);
    max = std::max(max, p[key]);
  }
  const double shift = max == kNegInf ? 0.0 : max;
  double sum = task.sink_logits != nullptr ? std::exp(task.sink_logits[head] - shift) : 0.0;
  for (double& value : p) {
    value = std::exp(value - shift);
    sum += value;
  }
  result->lse[row] = sum == 0 ? kNegInf : shift + std::log(sum);
  for (std::int64_t key = 0; key < task.kv_len; ++key) {
    // Invisible, or so far below the maximum that float64 holds no trace of it.
    if (p[key] == 0) continue;
    p[key] /= sum;
    for (int channel = 0; channel < params.head_dim_v; ++channel) {
      result->o[row * params.head_dim_v + channel] +=
          p[key] * LoadValue(task, key, head / params.group_size(), channel);
    }
    if (!result->weights.empty()) result->weights[row * task.kv_len + key] = p[key];
    if (!result->column_sums.empty()) {
      result->column_sums[key * params.num_q_heads + head] += p[key];
    }
  }
}

std::size_t ReferencePage::element_bytes() const {
  return static_cast<std::size_t>(page_size) * geometry.num_kv_heads *
         geometry.elements_per_head() * DTypeBytes(geometry.dtype);
}

std::size_t ReferencePage::bytes() const {
  const std::size_t scales =
      HasRowScales(geometry.dtype)
          ? geometry.rows_per_head() * static_cast<std::size_t>(page_size) * geometry.num_kv_heads
          : 0;
  return element_bytes() + scales * sizeof(float);
}

std::int64_t ReferencePage::KeyIndex(std::int64_t token, int head, int dim) const {
  return (token * geometry.num_kv_heads + head) * geometry.head_dim_qk + dim;
}

std::int64_t ReferencePage::ValueIndex(std::int64_t token, int head, int channel) const {
  return page_size * geometry.num_kv_heads * geometry.head_dim_qk +
         (token * geometry.num_kv_heads + head) * geometry.head_dim_v + channel;
}

std::int64_t ReferencePage::KeyScaleIndex(std::int64_t token, int head) const {
  return token * geometry.num_kv_heads + head;
}

std::int64_t ReferencePage::ValueScaleIndex(std::int64_t token, int head) const {
  return page_size * geometry.num_kv_heads + KeyScaleIndex(token, head);
}

float ReferencePage::Load(const void* page, std::int64_t element, std::int64_t scale) const {
  if (!HasRowScales(geometry.dtype)) return LoadElement(page, geometry.dtype, element);
  const auto* quantized = static_cast<const std::uint8_t*>(page);
  return DequantizedElement(geometry.dtype, quantized[element],
                            LoadElement(quantized + element_bytes(), DType::kFloat32, scale));
}

void ReferencePage::StoreRow(void* page, std::int64_t element, std::int64_t scale, const void* row,
                             DType row_dtype, int dim) const {
  if (!HasRowScales(geometry.dtype)) {
    for (int i = 0; i < dim; ++i) {
      StoreElement(page, geometry.dtype, element + i, LoadElement(row, row_dtype, i));
    }
    return;
  }
  float max = 0, poison = 0;  // which stays 0 while all is finite
  for (int i = 0; i < dim; ++i) {
    const float x = LoadElement(row, row_dtype, i);
    max = std::fmax(max, std::abs(x));
    poison += 0 * x;
  }
  const RowScale row_scale = RowScale::Of(geometry.dtype, max + poison);
  auto* quantized = static_cast<std::uint8_t*>(page);
  for (int i = 0; i < dim; ++i) {
    quantized[element + i] =
        QuantizedElement(geometry.dtype, LoadElement(row, row_dtype, i), row_scale);
  }
  StoreElement(quantized + element_bytes(), DType::kFloat32, scale, row_scale.scale);
}

ReferenceResult BeginReference(const AttentionTask& task, const ReferenceOptions& options) {
  const AttentionParams& params = task.params;
  const std::int64_t rows = task.q_len * params.num_q_heads;
  ReferenceResult result;
  result.o.assign(rows * params.head_dim_v, 0.0);
  result.lse.assign(rows, kNegInf);
  if (options.with_weights) result.weights.assign(rows * task.kv_len, 0.0);
  if (options.with_column_sums) {
    result.column_sums.assign(task.kv_len * params.num_q_heads, 0.0);
  }
  return result;
}

ReferenceResult ReferenceAttention(const AttentionTask& task, const ReferenceOptions& options) {
  ReferenceResult result = BeginReference(task, options);
  for (std::int64_t query = 0; query < task.q_len; ++query) {
    for (int head = 0; head < task.params.num_q_heads; ++head) {
      AddReferenceRow(task, query, head, &result);
    }
  }
  return result;
}

}  // namespace attention::reference
