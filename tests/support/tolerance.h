// How far a result may be from the float64 reference, and why.
//
// The yardstick is the *plain* computation: the same loops as the reference in float32, rounded to
// the output type, on the same inputs. A kernel sums in another order and has its own exp, so it
// may err as much again: twice the plain error, plus one epsilon of the output type for its last
// rounding. The plain error is the largest over the tensor, because at a single element it may be
// zero by luck; the epsilon is scaled by the largest magnitude of the tensor for the same reason. A
// tensor of few elements may be lucky throughout: its plain error counts as no less than one
// rounding of the largest score, times the largest value. So does that of keys of int8, whose scale
// rounds each score once more than the plain computation does.
//
// Results over a cache of another type than the rows' are compared with the reference over the rows
// as the cache holds them; how far those are from the rows is for the tests of the types
// (tests/unit/kernels/api).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/reference/dtype_epsilon.h"
#include "kernels/reference/reference_attention.h"
#include "tests/support/attention_problem.h"

namespace attention::testing {

// The expected result, computed once for each problem.
struct Expectation {
  reference::ReferenceResult exact;
  double o_tolerance = 0;
  double lse_tolerance = 0;
};

Expectation MakeExpectation(const AttentionProblem& problem);

// Empty, or what differs first: index, actual, expected, bound.
std::string FindMismatch(const Expectation& expected, const TaskOutput& actual);

}  // namespace attention::testing
