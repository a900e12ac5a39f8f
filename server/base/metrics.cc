#include "server/base/metrics.h"

#include <algorithm>
#include <cmath>

namespace attention::server {
namespace {

// 2^(i/8), the bounds between 1 and 2.
const std::array<double, Histogram::kPerDoubling> kBounds = [] {
  std::array<double, Histogram::kPerDoubling> bounds{};
  for (int i = 0; i < Histogram::kPerDoubling; ++i) {
    bounds[i] = std::exp2(static_cast<double>(i) / Histogram::kPerDoubling);
  }
  return bounds;
}();

// The i whose bucket holds the value: the least with value <= 2^(i/8).
int IndexOf(double value) {
  int exponent = 0;
  const double fraction = 2 * std::frexp(value, &exponent);  // 1 to 2
  const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), fraction);
  return (exponent - 1) * Histogram::kPerDoubling + static_cast<int>(bound - kBounds.begin());
}

}  // namespace

void Histogram::Observe(double value) {
  sum_.fetch_add(value, std::memory_order_relaxed);
  if (!(value > kZeroThreshold)) {
    zero_count_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  const double greatest = std::exp2(kMaxExponent);
  const int bucket = IndexOf(std::min(value, greatest)) - kFirstIndex;
  buckets_[bucket].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace attention::server
