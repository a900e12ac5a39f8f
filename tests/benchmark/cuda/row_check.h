// Checks a few rows of a result beside float64.
//
// A kernel rounds weights and outputs to the type of the outputs, of unit roundoff u = epsilon / 2.
// Roundings of weights are independent, so channel c is off by about u sqrt(sum of (p_j v_jc)^2)
// through them and by u |o_c| through its own; the bound is eight times the one plus twice the
// other. What float32 loses of scores and sums is a thousandth of that in 16-bit types, and counts
// as 2^-18 of sum of p_j |v_jc|, which is what the bound is made of in float32.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/benchmark/cuda/case_tensors.h"

namespace attention::bench {

struct RowRef {
  int part = 0;
  int sequence = 0;
  std::int64_t query = 0;
  int head = 0;
};

struct ExpectedRow {
  RowRef ref;
  std::vector<double> exact;  // [head_dim]
  std::vector<double> bound;
};

// The corners of each part, and others drawn at random.
std::vector<ExpectedRow> ExpectRows(const CaseTensors& tensors, int rows_per_part);

// Reads a row of a result, head_dim values.
using ReadRow = std::function<absl::Status(const RowRef& ref, std::vector<float>* row)>;

// The largest error of the rows in bounds: at most 1 is right. Infinite when there is a NaN.
absl::StatusOr<double> WorstError(const std::vector<ExpectedRow>& expected, const ReadRow& read);

}  // namespace attention::bench
