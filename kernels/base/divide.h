// Integer helpers for tiling. All arguments are non-negative and divisors positive.
#pragma once

namespace attention {

template <typename Int>
constexpr Int CeilDiv(Int value, Int divisor) {
  return (value + divisor - 1) / divisor;
}

template <typename Int>
constexpr Int RoundUp(Int value, Int multiple) {
  return CeilDiv(value, multiple) * multiple;
}

template <typename Int>
constexpr Int RoundDown(Int value, Int multiple) {
  return value / multiple * multiple;
}

}  // namespace attention
