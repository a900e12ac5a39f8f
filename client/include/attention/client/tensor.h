// Tensors as the SDK takes and gives them: TensorView looks at the caller's memory, Tensor owns a
// result. Both are dense, row-major and little-endian. Values may be copied and read from any
// thread; neither type synchronises writers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace attention::client {

// Element type of a tensor.
enum class DType {
  kFloat32,   // IEEE 754 binary32, 4 bytes
  kFloat16,   // IEEE 754 binary16, 2 bytes
  kBFloat16,  // the upper half of a binary32, 2 bytes
  kBool,      // 1 byte, 0 or 1; only for masks
  // Only as what a session's cache stores; no tensor has them.
  kInt8,
  kFloat8E4M3,
};

// Bytes of one element.
std::size_t ElementBytes(DType dtype);
// "float32", "float16", "bfloat16", "bool", "int8" or "float8_e4m3".
std::string_view DTypeName(DType dtype);

// Dimensions, outermost first. A dimension may be 0.
using Shape = std::vector<std::int64_t>;

// The product of the dimensions; -1 if one is negative or the product does not fit.
std::int64_t NumElements(const Shape& shape);

// A tensor in the caller's memory, which must stay unchanged until the SDK function it is given to
// returns (synchronous, future and callback forms alike: the bytes are copied, once, before they
// return, into the buffer that all attempts of the call are sent from). A default-constructed view
// is absent: it stands for an optional tensor not given.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  Shape shape;

  TensorView() = default;
  // `data` [shape], of `dtype`.
  TensorView(const void* data, DType dtype, Shape shape)
      : data(data), dtype(dtype), shape(std::move(shape)) {}
  // float32 `values` [shape]. `values.size()` must be the product of `shape`.
  TensorView(std::span<const float> values, Shape shape);
  // float16 or bfloat16 bit patterns [shape]. `values.size()` must be the product of `shape`.
  TensorView(std::span<const std::uint16_t> values, DType dtype, Shape shape);

  bool is_present() const { return !shape.empty(); }
  std::int64_t num_elements() const { return NumElements(shape); }
  // 0 where num_elements() is -1.
  std::size_t num_bytes() const;
};

// A tensor that owns its bytes, which never change: copies of a Tensor share them. A
// default-constructed one is absent: what was not asked for.
class Tensor {
 public:
  Tensor() = default;
  // Takes `data`, which must hold exactly `shape` times the element's bytes.
  Tensor(DType dtype, Shape shape, std::string data);
  // Looks at `bytes`, which must be exactly `shape` times the element's, be aligned for an element,
  // and stay as they are as long as `owner` lives.
  Tensor(DType dtype, Shape shape, std::string_view bytes, std::shared_ptr<const void> owner)
      : dtype_(dtype), shape_(std::move(shape)), owner_(std::move(owner)), bytes_(bytes) {}
  Tensor(const Tensor&) = default;
  Tensor& operator=(const Tensor&) = default;
  // A tensor that is moved from becomes absent.
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor() = default;
  // A float32 copy of `values` [shape].
  static Tensor FromFloats(std::span<const float> values, Shape shape);
  // `values` [shape] rounded to nearest even into `dtype`: float32, float16 or bfloat16.
  static Tensor FromFloats(std::span<const float> values, Shape shape, DType dtype);

  bool is_present() const { return !shape_.empty(); }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::int64_t num_elements() const { return NumElements(shape_); }
  // Bytes as they came over the wire. Results of calls begin on a 64-byte boundary.
  std::string_view bytes() const { return bytes_; }
  // The elements of a float32 tensor; empty for every other type.
  std::span<const float> floats() const;
  // The elements of a float32, float16 or bfloat16 tensor, widened exactly; empty for bool.
  std::vector<float> ToFloats() const;
  // Valid as long as this tensor, or a copy of it, is neither changed nor destroyed.
  TensorView view() const { return TensorView(bytes_.data(), dtype_, shape_); }

 private:
  DType dtype_ = DType::kFloat32;
  Shape shape_;
  std::shared_ptr<const void> owner_;
  std::string_view bytes_;
};

}  // namespace attention::client
