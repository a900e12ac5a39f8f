#include "tests/support/wire_tensor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>

#include "kernels/api/quantized_row.h"
#include "kernels/base/check.h"

namespace attention::testing {
namespace {

std::int64_t BytesOf(v1::DType dtype) {
  if (dtype == v1::DTYPE_BOOL) return 1;
  return static_cast<std::int64_t>(DTypeBytes(FromWire(dtype)));
}

std::int64_t RowBytes(const v1::Tensor& tensor) {
  const auto& shape = tensor.shape();
  return std::accumulate(shape.begin() + 1, shape.end(), BytesOf(tensor.dtype()),
                         std::multiplies<>());
}

}  // namespace

DType FromWire(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT16:
      return DType::kFloat16;
    case v1::DTYPE_BFLOAT16:
      return DType::kBFloat16;
    default:
      ATTENTION_CHECK(dtype == v1::DTYPE_FLOAT32);
      return DType::kFloat32;
  }
}

v1::Tensor ZeroTensor(v1::DType dtype, const Shape& shape) {
  v1::Tensor tensor;
  tensor.set_dtype(dtype);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.mutable_data()->assign(static_cast<std::size_t>(NumElements(tensor) * BytesOf(dtype)),
                                '\0');
  return tensor;
}

v1::Tensor MakeTensor(v1::DType dtype, const Shape& shape, std::span<const float> values) {
  v1::Tensor tensor = ZeroTensor(dtype, shape);
  ATTENTION_CHECK(NumElements(tensor) == static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    SetElement(&tensor, static_cast<std::int64_t>(i), values[i]);
  }
  return tensor;
}

v1::Tensor RandomTensor(v1::DType dtype, const Shape& shape, std::uint32_t seed, float deviation) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  v1::Tensor tensor = ZeroTensor(dtype, shape);
  for (std::int64_t i = 0; i < NumElements(tensor); ++i) SetElement(&tensor, i, normal(random));
  return tensor;
}

v1::Tensor RandomMask(const Shape& shape, std::uint32_t seed) {
  std::mt19937 random(seed);
  v1::Tensor mask = ZeroTensor(v1::DTYPE_BOOL, shape);
  for (char& byte : *mask.mutable_data()) byte = random() % 3 == 0 ? 0 : 1;
  return mask;
}

Shape ShapeOf(const v1::Tensor& tensor) { return {tensor.shape().begin(), tensor.shape().end()}; }

std::int64_t NumElements(const v1::Tensor& tensor) {
  const auto& shape = tensor.shape();
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

float ElementAt(const v1::Tensor& tensor, std::int64_t index) {
  return LoadElement(tensor.data().data(), FromWire(tensor.dtype()), index);
}

void SetElement(v1::Tensor* tensor, std::int64_t index, float value) {
  StoreElement(tensor->mutable_data()->data(), FromWire(tensor->dtype()), index, value);
}

v1::Tensor Rows(const v1::Tensor& tensor, std::int64_t begin, std::int64_t end) {
  ATTENTION_CHECK(0 <= begin && begin <= end && end <= tensor.shape(0));
  v1::Tensor rows;
  rows.set_dtype(tensor.dtype());
  *rows.mutable_shape() = tensor.shape();
  rows.set_shape(0, end - begin);
  const std::int64_t bytes = RowBytes(tensor);
  rows.set_data(tensor.data().substr(static_cast<std::size_t>(begin * bytes),
                                     static_cast<std::size_t>((end - begin) * bytes)));
  return rows;
}

void AppendRows(const v1::Tensor& more, v1::Tensor* tensor) {
  if (tensor->shape().empty()) {
    *tensor = more;
    return;
  }
  ATTENTION_CHECK(RowBytes(more) == RowBytes(*tensor));
  tensor->set_shape(0, tensor->shape(0) + more.shape(0));
  tensor->mutable_data()->append(more.data());
}

v1::Tensor Converted(const v1::Tensor& tensor, v1::DType dtype) {
  v1::Tensor converted = ZeroTensor(dtype, ShapeOf(tensor));
  for (std::int64_t i = 0; i < NumElements(tensor); ++i) {
    SetElement(&converted, i, ElementAt(tensor, i));
  }
  return converted;
}

v1::Tensor Quantized(const v1::Tensor& tensor, DType dtype) {
  v1::Tensor stored = ZeroTensor(v1::DTYPE_FLOAT32, ShapeOf(tensor));
  const std::int64_t dim = ShapeOf(tensor).back();
  for (std::int64_t row = 0; row < NumElements(tensor); row += dim) {
    float max = 0;
    for (std::int64_t i = row; i < row + dim; ++i) {
      max = std::max(max, std::abs(ElementAt(tensor, i)));
    }
    const RowScale scale = RowScale::Of(dtype, max);
    for (std::int64_t i = row; i < row + dim; ++i) {
      const std::uint8_t quantized = QuantizedElement(dtype, ElementAt(tensor, i), scale);
      SetElement(&stored, i, DequantizedElement(dtype, quantized, scale.scale));
    }
  }
  return stored;
}

bool SameBits(const v1::Tensor& a, const v1::Tensor& b) {
  return a.dtype() == b.dtype() && ShapeOf(a) == ShapeOf(b) && a.data() == b.data();
}

}  // namespace attention::testing
