// The median: what benchmarks report of repetitions, because it does not see a few bad ones.
#pragma once

#include <algorithm>
#include <vector>

namespace attention::bench {

// The upper of the two in the middle of an even number; 0 of none.
inline double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace attention::bench
