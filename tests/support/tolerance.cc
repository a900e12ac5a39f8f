#include "tests/support/tolerance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

namespace attention::testing {
namespace {

constexpr float kNegInf = -std::numeric_limits<float>::infinity();

// A tensor of fewer outputs may be computed exactly by luck, over and over.
constexpr std::int64_t kFewOutputs = 1000;

struct PlainRow {
  std::vector<float> o;
  float largest_score = 0;
  float lse = kNegInf;
};

float PlainScore(const AttentionTask& task, int head, std::int64_t query, std::int64_t key) {
  const AttentionParams& params = task.params;
  const int kv_head = head / params.group_size();
  float s = 0;
  for (int dim = 0; dim < params.head_dim_qk; ++dim) {
    s += LoadElement(task.q.data, task.q.dtype,
                     query * task.q.row_stride + head * task.q.head_stride + dim) *
         LoadElement(task.k.data, task.k.dtype,
                     key * task.k.row_stride + kv_head * task.k.head_stride + dim);
  }
  s *= params.softmax_scale;
  if (params.soft_cap > 0) s = params.soft_cap * std::tanh(s / params.soft_cap);
  if (task.alibi_slopes != nullptr) {
    s +=
        task.alibi_slopes[head] * static_cast<float>(task.key_position(key) - task.position(query));
  }
  if (task.bias.data != nullptr) {
    s += LoadElement(
        task.bias.data, task.bias.dtype,
        head * task.bias.head_stride + query * task.bias.row_stride + key * task.bias.key_stride);
  }
  return s;
}

// `visible` holds the reference's weights: zero (or too small to matter) for invisible keys.
PlainRow AttendPlain(const AttentionTask& task, int head, std::int64_t query,
                     const double* visible) {
  const AttentionParams& params = task.params;
  PlainRow row;
  std::vector<float> p(task.kv_len, kNegInf);
  float max = task.sink_logits != nullptr ? task.sink_logits[head] : kNegInf;
  for (std::int64_t key = 0; key < task.kv_len; ++key) {
    if (visible[key] == 0) continue;
    p[key] = PlainScore(task, head, query, key);
    if (std::isfinite(p[key])) row.largest_score = std::max(row.largest_score, std::abs(p[key]));
    max = std::max(max, p[key]);
  }
  row.o.assign(params.head_dim_v, 0.0f);
  if (max == kNegInf) return row;
  float sum = task.sink_logits != nullptr ? std::exp(task.sink_logits[head] - max) : 0.0f;
  for (float& value : p) sum += value = std::exp(value - max);
  row.lse = max + std::log(sum);
  for (std::int64_t key = 0; key < task.kv_len; ++key) {
    if (visible[key] == 0) continue;
    const float weight = p[key] / sum;
    for (int channel = 0; channel < params.head_dim_v; ++channel) {
      row.o[channel] +=
          weight * LoadElement(task.v.data, task.v.dtype,
                               key * task.v.row_stride +
                                   head / params.group_size() * task.v.head_stride + channel);
    }
  }
  for (float& value : row.o) value = Rounded(params.dtype, value);
  return row;
}

double LargestValue(const AttentionTask& task) {
  double largest = 0;
  // Dense; of keys whose prefixes are the values, all elements.
  for (std::int64_t i = 0; i < task.kv_len * task.v.row_stride; ++i) {
    const double value = std::abs(LoadElement(task.v.data, task.v.dtype, i));
    if (std::isfinite(value)) largest = std::max(largest, value);
  }
  return largest;
}

std::string Difference(const char* what, std::int64_t index, std::int64_t inner, double actual,
                       double expected, double bound) {
  std::ostringstream out;
  out.precision(10);
  out << what << "[" << index / inner << "][" << index % inner << "] is " << actual << ", expected "
      << expected << " within " << bound;
  return out.str();
}

bool IsClose(double actual, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(actual);
  if (std::isinf(expected)) return actual == expected;
  return std::abs(actual - expected) <= tolerance;
}

}  // namespace

Expectation MakeExpectation(const AttentionProblem& problem) {
  const AttentionTask task = problem.StoredTask();
  const AttentionParams& params = task.params;
  Expectation expected;
  expected.exact = reference::ReferenceAttention(task, {.with_weights = true});
  double o_error = 0, lse_error = 0, o_max = 0, lse_max = 1, largest_score = 0;
  for (std::int64_t row = 0; row < task.q_len * params.num_q_heads; ++row) {
    const PlainRow plain =
        AttendPlain(task, static_cast<int>(row % params.num_q_heads), row / params.num_q_heads,
                    expected.exact.weights.data() + row * task.kv_len);
    for (int channel = 0; channel < params.head_dim_v; ++channel) {
      const double exact = expected.exact.o[row * params.head_dim_v + channel];
      o_error = std::max(o_error, std::abs(plain.o[channel] - exact));
      o_max = std::max(o_max, std::abs(exact));
    }
    largest_score = std::max<double>(largest_score, plain.largest_score);
    const double lse = expected.exact.lse[row];
    if (std::isinf(lse)) continue;
    lse_error = std::max(lse_error, std::abs(plain.lse - lse));
    lse_max = std::max(lse_max, std::abs(lse));
  }
  // The scale of int8 rounds each score once more; that of float8_e4m3 is a power of two.
  const bool has_rounded_scores = problem.spec().kv_dtype == DType::kInt8;
  if (has_rounded_scores || static_cast<std::int64_t>(expected.exact.o.size()) < kFewOutputs) {
    // One rounding of a score changes the weight of its value by this.
    o_error = std::max(o_error, 0x1p-24 * largest_score * LargestValue(task));
  }
  expected.o_tolerance = 2 * o_error + DTypeEpsilon(params.dtype) * o_max;
  expected.lse_tolerance = 2 * lse_error + DTypeEpsilon(DType::kFloat32) * lse_max;
  return expected;
}

std::string FindMismatch(const Expectation& expected, const TaskOutput& actual) {
  for (std::size_t i = 0; i < actual.lse.size(); ++i) {
    if (!IsClose(actual.lse[i], expected.exact.lse[i], expected.lse_tolerance)) {
      return Difference("lse", i, actual.num_q_heads, actual.lse[i], expected.exact.lse[i],
                        expected.lse_tolerance);
    }
  }
  for (std::int64_t i = 0; i < actual.o_count; ++i) {
    if (!IsClose(actual.o(i), expected.exact.o[i], expected.o_tolerance)) {
      return Difference("o", i, actual.head_dim_v, actual.o(i), expected.exact.o[i],
                        expected.o_tolerance);
    }
  }
  return "";
}

}  // namespace attention::testing
