// Conversions of 16-bit elements by table: the compiler's are calls.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/api/dtype.h"

namespace attention::simt {

inline const std::vector<float>& FloatsOf(DType dtype) {
  static const auto make = [](DType of) {
    std::vector<float> floats(0x10000);
    for (std::uint32_t bits = 0; bits < floats.size(); ++bits) {
      floats[bits] = LoadElement(&bits, of, 0);
    }
    return floats;
  };
  static const std::vector<float> halves = make(DType::kFloat16);
  static const std::vector<float> bfloats = make(DType::kBFloat16);
  return dtype == DType::kFloat16 ? halves : bfloats;
}

}  // namespace attention::simt
