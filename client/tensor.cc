#include "attention/client/tensor.h"

#include <cstring>
#include <iterator>

#include "client/internal/base/half.h"

namespace attention::client {
namespace {

struct ElementType {
  std::string_view name;
  std::size_t bytes;
};

// By DType.
constexpr ElementType kElementTypes[] = {{"float32", 4}, {"float16", 2}, {"bfloat16", 2},
                                         {"bool", 1},    {"int8", 1},    {"float8_e4m3", 1}};
static_assert(std::size(kElementTypes) == static_cast<std::size_t>(DType::kFloat8E4M3) + 1);

ElementType TypeOf(DType dtype) {
  const auto index = static_cast<std::size_t>(dtype);
  return index < std::size(kElementTypes) ? kElementTypes[index] : ElementType{"unknown", 0};
}

template <typename Element, typename Convert>
std::string Pack(std::span<const float> values, Convert convert) {
  std::string data(values.size() * sizeof(Element), '\0');
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Element element = convert(values[i]);
    std::memcpy(data.data() + i * sizeof(Element), &element, sizeof(Element));
  }
  return data;
}

template <typename Convert>
std::vector<float> Widen(std::string_view data, Convert convert) {
  std::vector<float> values(data.size() / sizeof(std::uint16_t));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, data.data() + i * sizeof(bits), sizeof(bits));
    values[i] = convert(bits);
  }
  return values;
}

}  // namespace

std::size_t ElementBytes(DType dtype) { return TypeOf(dtype).bytes; }

std::string_view DTypeName(DType dtype) { return TypeOf(dtype).name; }

std::int64_t NumElements(const Shape& shape) {
  std::int64_t product = 1;
  bool overflows = false;
  bool has_zero = false;
  for (const std::int64_t dimension : shape) {
    if (dimension < 0) return -1;
    if (dimension == 0) has_zero = true;
    overflows = overflows || __builtin_mul_overflow(product, dimension, &product);
  }
  if (has_zero) return 0;
  return overflows ? -1 : product;
}

// A span of another size than the shape's loses its pointer, so that it is refused when serialised
// rather than read out of bounds.
TensorView::TensorView(std::span<const float> values, Shape shape_in)
    : dtype(DType::kFloat32), shape(std::move(shape_in)) {
  if (NumElements(shape) == static_cast<std::int64_t>(values.size())) data = values.data();
}

TensorView::TensorView(std::span<const std::uint16_t> values, DType dtype_in, Shape shape_in)
    : dtype(dtype_in), shape(std::move(shape_in)) {
  const bool fits = NumElements(shape) == static_cast<std::int64_t>(values.size());
  if (fits && ElementBytes(dtype) == sizeof(std::uint16_t)) data = values.data();
}

std::size_t TensorView::num_bytes() const {
  const std::int64_t elements = num_elements();
  return elements < 0 ? 0 : static_cast<std::size_t>(elements) * ElementBytes(dtype);
}

Tensor::Tensor(DType dtype, Shape shape, std::string data)
    : dtype_(dtype), shape_(std::move(shape)) {
  auto owner = std::make_shared<const std::string>(std::move(data));
  bytes_ = *owner;
  owner_ = std::move(owner);
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  dtype_ = other.dtype_;
  shape_ = std::exchange(other.shape_, {});
  owner_ = std::exchange(other.owner_, nullptr);
  bytes_ = std::exchange(other.bytes_, {});
  return *this;
}

Tensor Tensor::FromFloats(std::span<const float> values, Shape shape) {
  return FromFloats(values, std::move(shape), DType::kFloat32);
}

Tensor Tensor::FromFloats(std::span<const float> values, Shape shape, DType dtype) {
  std::string data;
  switch (dtype) {
    case DType::kFloat16:
      data = Pack<std::uint16_t>(values, internal::ToFloat16);
      break;
    case DType::kBFloat16:
      data = Pack<std::uint16_t>(values, internal::ToBFloat16);
      break;
    case DType::kFloat32:
      data.assign(reinterpret_cast<const char*>(values.data()), values.size_bytes());
      break;
    case DType::kBool:
      data = Pack<std::uint8_t>(values, [](float value) { return std::uint8_t{value != 0}; });
      break;
    case DType::kInt8:
    case DType::kFloat8E4M3:
      break;
  }
  return Tensor(dtype, std::move(shape), std::move(data));
}

std::span<const float> Tensor::floats() const {
  if (dtype_ != DType::kFloat32) return {};
  // A string's buffer, too, is aligned for every scalar, on the heap and inside the string alike.
  return {reinterpret_cast<const float*>(bytes_.data()), bytes_.size() / sizeof(float)};
}

std::vector<float> Tensor::ToFloats() const {
  switch (dtype_) {
    case DType::kFloat32:
      return {floats().begin(), floats().end()};
    case DType::kFloat16:
      return Widen(bytes_, internal::FromFloat16);
    case DType::kBFloat16:
      return Widen(bytes_, internal::FromBFloat16);
    case DType::kBool:
    case DType::kInt8:
    case DType::kFloat8E4M3:
      return {};
  }
  return {};
}

}  // namespace attention::client
