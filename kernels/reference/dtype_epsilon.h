// The rounding of output types, for tolerances.
#pragma once

#include "kernels/api/dtype.h"

namespace attention {

// Distance from 1 to the next number of the type.
constexpr double DTypeEpsilon(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0x1p-23;
    case DType::kFloat16:
      return 0x1p-10;
    case DType::kBFloat16:
      return 0x1p-7;
    case DType::kInt8:
    case DType::kFloat8E4M3:
      break;  // no output has them
  }
  return 0;
}

}  // namespace attention
