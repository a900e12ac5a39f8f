// How a cache of int8 stores a row (one token of one KV head, of keys or of values): integers q and
// a float32 scale, x = scale * q. Symmetric, with a scale of its own for each row, so that
// appending a row never changes another.
#pragma once

#include <cmath>

namespace attention {

inline constexpr float kInt8Max = 127.0f;

// Rows whose largest magnitude is below this are stored as zeros: its reciprocal would overflow.
inline constexpr float kInt8LeastMax = 0x1p-100f;

struct Int8Scale {
  float scale;       // NaN for a row that is not finite: all of it reads as NaN
  float reciprocal;  // q = x * reciprocal, rounded to nearest, ties to even

  // `max` is the largest magnitude of the row, or not finite if an element is not.
  static Int8Scale Of(float max) {
    if (!std::isfinite(max)) return {NAN, 0.0f};
    if (max < kInt8LeastMax) return {0.0f, 0.0f};
    return {max / kInt8Max, kInt8Max / max};
  }
};

}  // namespace attention
