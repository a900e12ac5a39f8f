// Checks one answer against attention computed in float64. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "attention/client/tensor.h"
#include "client/loadgen/attention_case.h"
#include "client/loadgen/tensor_pool.h"

namespace attention::loadgen {

// Largest accepted error of an output row [head_dim_v], relative to the row's length (Euclidean
// norm), of a correct server.
//
// Two roundings into the answer's type are allowed, and doubled, as the product's promise on
// accuracy is: the answer's own, and that of the softmax weights before they meet v on a tensor
// core. Each is at most half an epsilon, so together 2 epsilon. To that the float32 arithmetic adds
// the random walk of its sums: sqrt(head_dim_qk) roundings in a score, sqrt(kv_len) in the weighted
// sum, and 16 for the exponential, the scale and the division, in units of float32's epsilon.
double RelativeTolerance(DType dtype, std::int64_t head_dim_qk, std::int64_t kv_len);

struct CheckedAnswer {
  // OK, or DATA_LOSS that names the first wrong row, its error and the bound, or what is wrong with
  // the tensor's type or shape.
  absl::Status status;
  std::int64_t rows_checked = 0;  // queries, all their heads
};

// float64 takes seconds for what the server does in milliseconds, so of a large answer only some
// queries are computed again: the first, the last and an even spread between, about kMaxMultiplies
// in all. That every element is finite is checked of all.
inline constexpr std::int64_t kMaxMultiplies = std::int64_t{1} << 27;
std::vector<std::int64_t> RowsToCheck(const AttentionCase& request);

CheckedAnswer CheckAnswer(const TensorPool& pool, const AttentionCase& request,
                          const client::Tensor& output);

}  // namespace attention::loadgen
