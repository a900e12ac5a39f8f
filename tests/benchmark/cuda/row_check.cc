#include "tests/benchmark/cuda/row_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/reference/reference_attention.h"

namespace attention::bench {
namespace {

double RoundoffOf(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8 / 2;
}

// One head of one query, with float32 keys and values.
AttentionTask RowTask(const PartTensors& tensors, const RowRef& ref, const float* keys,
                      const float* values) {
  const Part& part = tensors.part();
  AttentionTask task = part.Task();
  task.params.num_q_heads = task.params.num_kv_heads = 1;
  task.first_query_position = task.position(ref.query);
  task.q_len = 1;
  const char* row =
      tensors.Query(ref.sequence, ref.query) + ref.head * part.head_dim * DTypeBytes(part.dtype);
  task.q = DenseRows(static_cast<const void*>(row), part.dtype, 1, part.head_dim);
  task.k = DenseRows(static_cast<const void*>(keys), DType::kFloat32, 1, part.head_dim);
  task.v = DenseRows(static_cast<const void*>(values), DType::kFloat32, 1, part.head_dim);
  task.params.kv_dtype = DType::kFloat32;
  return task;
}

ExpectedRow ExpectRow(const PartTensors& tensors, const RowRef& ref) {
  const Part& part = tensors.part();
  const int kv_head = ref.head / (part.num_q_heads / part.num_kv_heads);
  const std::vector<float> keys = tensors.StoredKeys(ref.sequence, kv_head);
  const std::vector<float> values = tensors.StoredValues(ref.sequence, kv_head);
  const AttentionTask task = RowTask(tensors, ref, keys.data(), values.data());
  const reference::ReferenceResult result =
      reference::ReferenceAttention(task, {.with_weights = true});
  const double roundoff = RoundoffOf(part.dtype);
  ExpectedRow row{.ref = ref, .exact = result.o, .bound = {}};
  for (int channel = 0; channel < part.head_dim; ++channel) {
    double squares = 0, magnitudes = 0;
    for (std::int64_t key = 0; key < part.kv_len; ++key) {
      const double term = result.weights[key] * values[key * part.head_dim + channel];
      squares += term * term;
      magnitudes += std::fabs(term);
    }
    row.bound.push_back(roundoff * (8 * std::sqrt(squares) + 2 * std::fabs(row.exact[channel])) +
                        0x1p-18 * magnitudes);
  }
  return row;
}

}  // namespace

std::vector<ExpectedRow> ExpectRows(const CaseTensors& tensors, int rows_per_part) {
  std::mt19937 random(1);
  std::vector<ExpectedRow> rows;
  for (std::size_t index = 0; index < tensors.size(); ++index) {
    const Part& part = tensors[index]->part();
    const auto draw = [&](std::int64_t count) {
      return std::uniform_int_distribution<std::int64_t>(0, count - 1)(random);
    };
    for (int i = 0; i < rows_per_part; ++i) {
      RowRef ref{.part = static_cast<int>(index)};
      if (i == 1) {
        ref.sequence = part.batch_size - 1;
        ref.query = part.q_len - 1;
        ref.head = part.num_q_heads - 1;
      } else if (i > 1) {
        ref.sequence = static_cast<int>(draw(part.batch_size));
        ref.query = draw(part.q_len);
        ref.head = static_cast<int>(draw(part.num_q_heads));
      }
      rows.push_back(ExpectRow(*tensors[index], ref));
    }
  }
  return rows;
}

absl::StatusOr<double> WorstError(const std::vector<ExpectedRow>& expected, const ReadRow& read) {
  double worst = 0;
  for (const ExpectedRow& row : expected) {
    std::vector<float> actual(row.exact.size());
    if (absl::Status status = read(row.ref, &actual); !status.ok()) return status;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      const double error = std::fabs(actual[i] - row.exact[i]) / row.bound[i];
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
      if (std::isinf(worst)) return worst;
    }
  }
  return worst;
}

}  // namespace attention::bench
