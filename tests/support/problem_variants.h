// The grid of what the contract names, for the parity tests of every backend.
#pragma once

#include <vector>

#include "tests/support/attention_problem.h"

namespace attention::testing {

// Every kind of visibility and score modification, alone and combined.
std::vector<ProblemSpec> Variants(const ProblemSpec& base);

}  // namespace attention::testing
