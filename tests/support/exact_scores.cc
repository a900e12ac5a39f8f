#include "tests/support/exact_scores.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>

#include "kernels/api/quantized_row.h"
#include "kernels/reference/reference_attention.h"
#include "tests/support/attention_problem.h"
#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

constexpr float kMost = std::numeric_limits<float>::max();

// The value as a cache of the type holds it, in a row of which it is all.
float Stored(DType dtype, float value) {
  if (!HasRowScales(dtype)) return Rounded(dtype, value);
  const RowScale scale = RowScale::Of(dtype, std::abs(value));
  return DequantizedElement(dtype, QuantizedElement(dtype, value, scale), scale.scale);
}

// The least and the greatest exponent of 2 that the type holds beside some bits.
int LeastExponent(DType dtype) { return dtype == DType::kFloat16 ? -18 : -60; }
int GreatestExponent(DType dtype) { return dtype == DType::kFloat16 ? 12 : 61; }

// Fails the test if it is not; NaN is near nothing.
bool IsNear(double actual, double expected, double tolerance, const char* what, std::size_t index) {
  if (std::abs(actual - expected) <= tolerance) return true;
  ADD_FAILURE() << what << " " << index << " is " << actual << ", expected " << expected
                << " within " << tolerance;
  return false;
}

void ExpectOutputs(const TaskOutput& output, const reference::ReferenceResult& exact,
                   DType weight_dtype) {
  double largest = 0;
  for (double o : exact.o) largest = std::max(largest, std::abs(o));
  const double tolerance = (2 * DTypeEpsilon(weight_dtype) + 2e-5) * std::max(largest, 1.0);
  for (std::int64_t i = 0; i < output.o_count; ++i) {
    if (!IsNear(output.o(i), exact.o[i], tolerance, "o", i)) break;
  }
  for (std::size_t row = 0; row < exact.lse.size(); ++row) {
    const double lse = exact.lse[row];
    if (std::isinf(lse)) {
      ASSERT_EQ(output.lse[row], lse) << "lse " << row;
    } else if (!IsNear(output.lse[row], lse,
                       2 * DTypeEpsilon(DType::kFloat32) * std::abs(lse) + 1e-4, "lse", row)) {
      break;
    }
  }
}

void ExpectWeights(AttentionBackend& backend, const AttentionTask& attention,
                   const reference::ReferenceResult& exact, bool has_sink_logits) {
  std::vector<float> weights(exact.weights.size(), -1.0f);
  const WeightsTask task{
      .attention = attention, .q_begin = 0, .q_end = attention.q_len, .weights = weights.data()};
  const absl::Status status = backend.RunWeights(task);
  ASSERT_TRUE(status.ok()) << status;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!IsNear(weights[i], exact.weights[i], 4e-6 + 2e-5 * exact.weights[i], "weight", i)) break;
  }
  if (has_sink_logits) return;  // a sink takes its share
  for (std::size_t row = 0; row < exact.lse.size(); ++row) {
    const auto begin = weights.begin() + static_cast<std::ptrdiff_t>(row * attention.kv_len);
    const double sum = std::accumulate(begin, begin + attention.kv_len, 0.0);
    if (!IsNear(sum, std::isinf(exact.lse[row]) ? 0.0 : 1.0, 4e-6, "sum of weights", row)) break;
  }
}

}  // namespace

std::string ExactSpec::Describe() const {
  constexpr const char* kNames[] = {"dots", "bias", "near", "slopes"};
  std::ostringstream out;
  out << kNames[static_cast<int>(kind)] << " heads " << num_q_heads << "/" << num_kv_heads
      << " dims " << head_dim_qk << "/" << head_dim_v << " q_len " << q_len << " kv_len " << kv_len
      << " " << DTypeName(dtype) << " kv " << DTypeName(kv_dtype) << " bias "
      << DTypeName(bias_dtype) << " seed " << seed;
  if (is_causal) out << " causal";
  if (has_sink_logits) out << " sink_logits";
  if (bias) out << " bias " << *bias;
  return out.str();
}

std::uint32_t ExactProblem::Draw() {
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  return static_cast<std::uint32_t>(state_ >> 32);
}

int ExactProblem::DrawBetween(int low, int high) {
  return low + static_cast<int>(Draw() % static_cast<std::uint32_t>(high - low + 1));
}

float ExactProblem::DrawFinite(DType dtype) {
  constexpr float kMasks[] = {-1e10f, -1e12f, -1e30f, -kMost, kMost, -65504.0f, 0.0f, 0x1p31f};
  if (Draw() % 4 == 0) {
    const float mask = Rounded(dtype, kMasks[Draw() % std::size(kMasks)]);
    if (std::isfinite(mask)) return mask;
  }
  while (true) {
    const std::uint32_t bits = Draw();
    const float value = LoadElement(&bits, dtype, 0);
    if (std::isfinite(value)) return value;
  }
}

ExactProblem::ExactProblem(const ExactSpec& spec)
    : spec_(spec),
      state_(spec.seed * 977u + 1),
      q_(spec.q_len * spec.num_q_heads * spec.head_dim_qk * DTypeBytes(spec.dtype)),
      k_(spec.kv_len * spec.num_kv_heads * spec.head_dim_qk),
      v_(spec.kv_len * spec.num_kv_heads * spec.head_dim_v) {
  AttentionParams& params = task_.params;
  params.num_q_heads = spec.num_q_heads;
  params.num_kv_heads = spec.num_kv_heads;
  params.head_dim_qk = spec.head_dim_qk;
  params.head_dim_v = spec.head_dim_v;
  params.dtype = spec.dtype;
  params.kv_dtype = spec.kv_dtype;
  params.softmax_scale = 1.0f;
  params.is_causal = spec.is_causal;
  task_.q_len = spec.q_len;
  task_.kv_len = spec.kv_len;
  task_.first_query_position = spec.kv_len - spec.q_len;
  // Whole numbers of 3 bits, all of a row alike, are held by every type as they are.
  for (std::int64_t row = 0; row < spec.kv_len * spec.num_kv_heads; ++row) {
    std::fill_n(v_.begin() + row * spec.head_dim_v, spec.head_dim_v,
                static_cast<float>(DrawBetween(-4, 4)));
  }
  DrawScores();
  task_.q = DenseRows(static_cast<const void*>(q_.data()), spec.dtype, spec.num_q_heads,
                      spec.head_dim_qk);
  task_.k = DenseRows(static_cast<const void*>(k_.data()), DType::kFloat32, spec.num_kv_heads,
                      spec.head_dim_qk);
  task_.v = DenseRows(static_cast<const void*>(v_.data()), DType::kFloat32, spec.num_kv_heads,
                      spec.head_dim_v);
  if (!slopes_.empty()) task_.alibi_slopes = slopes_.data();
  if (!bias_.empty()) task_.bias = {bias_.data(), spec.bias_dtype, 0, spec.kv_len};
  if (spec.has_sink_logits) {
    for (int head = 0; head < spec.num_q_heads; ++head) {
      sinks_.push_back(DrawFinite(DType::kFloat32));
    }
    task_.sink_logits = sinks_.data();
  }
}

// Queries and keys have one element that is not 0, of few bits, so a dot product is one product and
// exact.
void ExactProblem::DrawScores() {
  const ExactSpec& spec = spec_;
  const auto set_query = [&](std::int64_t row, float value) {
    StoreElement(q_.data(), spec.dtype, row * spec.head_dim_qk, value);
  };
  const auto set_key = [&](std::int64_t row, float value) {
    k_[row * spec.head_dim_qk] = Stored(spec.kv_dtype, value);
  };
  const std::int64_t num_queries = spec.q_len * spec.num_q_heads;
  const std::int64_t num_keys = spec.kv_len * spec.num_kv_heads;
  const auto set_bias = [&](const auto& value_of) {
    bias_.resize(spec.q_len * spec.kv_len * DTypeBytes(spec.bias_dtype));
    for (std::int64_t i = 0; i < spec.q_len * spec.kv_len; ++i) {
      StoreElement(bias_.data(), spec.bias_dtype, i, value_of(i / spec.kv_len));
    }
  };
  switch (spec.kind) {
    case ScoreKind::kDots: {
      // All keys of one size, so that several of them count.
      const int size = DrawBetween(LeastExponent(spec.kv_dtype), GreatestExponent(spec.kv_dtype));
      for (std::int64_t i = 0; i < num_keys; ++i) {
        const float mantissa = static_cast<float>(DrawBetween(-15, 15));
        k_[i * spec.head_dim_qk] =
            Stored(spec.kv_dtype, std::ldexp(mantissa, size + (Draw() % 8 == 0 ? -4 : 0)));
      }
      for (std::int64_t i = 0; i < num_queries; ++i) {
        const int exponent = DrawBetween(LeastExponent(spec.dtype), GreatestExponent(spec.dtype));
        set_query(i, std::ldexp(Draw() % 2 == 0 ? 1.0f : -1.0f, exponent));
      }
      return;
    }
    case ScoreKind::kBias:
      return set_bias(
          [&](std::int64_t) { return spec.bias ? *spec.bias : DrawFinite(spec.bias_dtype); });
    case ScoreKind::kNear:
      for (std::int64_t i = 0; i < num_keys; ++i)
        set_key(i, static_cast<float>(DrawBetween(-8, 8)));
      for (std::int64_t i = 0; i < num_queries; ++i) set_query(i, 1.0f);
      // float32 holds the sums, all bits of them.
      return set_bias([&](std::int64_t row) {
        const float offset = std::ldexp(row % 2 == 0 ? -1.0f : 1.0f, static_cast<int>(row) % 23);
        return offset + static_cast<float>(DrawBetween(-4, 4));
      });
    case ScoreKind::kSlopes:
      for (int head = 0; head < spec.num_q_heads; ++head) {
        slopes_.push_back(std::ldexp(Draw() % 2 == 0 ? 1.0f : -1.0f, DrawBetween(-30, 124)));
      }
      return;
  }
}

ExactSpec DrawnSpec(std::uint32_t number) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  constexpr DType kKvTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                                DType::kFloat8E4M3};
  constexpr std::int64_t kQueries[] = {1, 5, 14}, kKeys[] = {3, 40, 700};
  ExactSpec spec{.kind = static_cast<ScoreKind>(number % 4),
                 .kv_dtype = kKvTypes[number % 5],
                 .bias_dtype = number % 4 == 2 ? DType::kFloat32 : kTypes[number % 3],
                 .q_len = kQueries[number / 4 % 3],
                 .kv_len = kKeys[number / 3 % 3],
                 .is_causal = number % 7 < 3,
                 .has_sink_logits = number % 6 == 5,
                 .seed = number};
  spec.dtype = HasRowScales(spec.kv_dtype) ? kTypes[2 * (number / 5 % 2)] : spec.kv_dtype;
  return spec;
}

void ExpectExact(AttentionBackend& backend, const ExactProblem& problem) {
  const ExactSpec& spec = problem.spec();
  SCOPED_TRACE(spec.Describe());
  AttentionTask task = problem.task();
  SCOPED_TRACE(backend.KernelName(task));
  AttentionTask stored = task;
  stored.params.kv_dtype = DType::kFloat32;
  const auto exact =
      reference::ReferenceAttention(stored, {.with_weights = true, .with_column_sums = true});
  TaskOutput output(task.params, task.q_len, task.kv_len);
  output.wants_column_sums = true;
  output.BindTo(&task);
  RunTasks(backend, {task});
  // Matrix instructions round weights to 16 bits, and so may those of bfloat16 on a processor.
  ExpectOutputs(output, exact, spec.dtype);
  for (std::size_t i = 0; i < output.column_sums.size(); ++i) {
    if (!IsNear(output.column_sums[i], exact.column_sums[i],
                1e-5 * std::max(1.0, exact.column_sums[i]), "column sum", i)) {
      break;
    }
  }
  ExpectWeights(backend, task, exact, spec.has_sink_logits);
}

}  // namespace attention::testing
