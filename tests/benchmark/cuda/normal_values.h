// Random tensors, many and cheaply.
#pragma once

#include <cstdint>

#include "kernels/api/dtype.h"

namespace attention::bench {

// `count` values of standard normal distribution. They come from a table whose length is a prime
// near a million, so rows of tensors begin at another place of it each.
void FillNormal(DType dtype, std::int64_t count, std::uint32_t seed, void* out);

}  // namespace attention::bench
