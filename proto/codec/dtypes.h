// Between the wire's dtypes and an enum whose members have the same names: the server's, the SDK's.
#pragma once

#include <optional>

#include "attention/v1/tensor.pb.h"

namespace attention::codec {

template <typename DType>
struct DTypePair {
  v1::DType wire;
  DType dtype;
};

template <typename DType>
inline constexpr DTypePair<DType> kDTypePairs[] = {
    {v1::DTYPE_FLOAT32, DType::kFloat32},        {v1::DTYPE_FLOAT16, DType::kFloat16},
    {v1::DTYPE_BFLOAT16, DType::kBFloat16},      {v1::DTYPE_INT8, DType::kInt8},
    {v1::DTYPE_FLOAT8_E4M3, DType::kFloat8E4M3},
};

// DTYPE_UNSPECIFIED for a member that is not among the pairs.
template <typename DType>
v1::DType DTypeToWire(DType dtype) {
  for (const auto& pair : kDTypePairs<DType>) {
    if (pair.dtype == dtype) return pair.wire;
  }
  return v1::DTYPE_UNSPECIFIED;
}

// nullopt for a dtype that is not among the pairs.
template <typename DType>
std::optional<DType> DTypeFromWire(v1::DType dtype) {
  for (const auto& pair : kDTypePairs<DType>) {
    if (pair.wire == dtype) return pair.dtype;
  }
  return std::nullopt;
}

}  // namespace attention::codec
