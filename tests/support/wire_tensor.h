// Tensors as they travel, for tests. Values are given and read as float32 whatever the tensor's
// type; the same seed gives the same tensor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/v1/tensor.pb.h"
#include "kernels/api/dtype.h"

namespace attention::testing {

using Shape = std::vector<std::int64_t>;

// float32, float16 or bfloat16.
DType FromWire(v1::DType dtype);

// Any dtype, bool too; every byte is zero.
v1::Tensor ZeroTensor(v1::DType dtype, const Shape& shape);

// `values` rounded to nearest even into `dtype`.
v1::Tensor MakeTensor(v1::DType dtype, const Shape& shape, std::span<const float> values);

// Normally distributed values.
v1::Tensor RandomTensor(v1::DType dtype, const Shape& shape, std::uint32_t seed,
                        float deviation = 1.0f);

// About two of three elements are visible.
v1::Tensor RandomMask(const Shape& shape, std::uint32_t seed);

Shape ShapeOf(const v1::Tensor& tensor);
std::int64_t NumElements(const v1::Tensor& tensor);
float ElementAt(const v1::Tensor& tensor, std::int64_t index);
void SetElement(v1::Tensor* tensor, std::int64_t index, float value);

// Rows [begin, end) along the first dimension.
v1::Tensor Rows(const v1::Tensor& tensor, std::int64_t begin, std::int64_t end);

// Adds rows behind those of `tensor`; the shape of an empty message becomes that of `more`.
void AppendRows(const v1::Tensor& more, v1::Tensor* tensor);

// Rows as a cache of a type with row scales holds them, in float32.
v1::Tensor Quantized(const v1::Tensor& tensor, DType dtype);

// The same values rounded into another type.
v1::Tensor Converted(const v1::Tensor& tensor, v1::DType dtype);

// Same type, shape and bytes.
bool SameBits(const v1::Tensor& a, const v1::Tensor& b);

}  // namespace attention::testing
