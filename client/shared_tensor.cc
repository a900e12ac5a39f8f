#include "attention/client/shared_tensor.h"

#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace attention::client {
namespace {

constexpr std::align_val_t kAlignment{64};
// More than any memory has, and their bytes can be counted.
constexpr std::int64_t kMaxElements = std::int64_t{1} << 56;

}  // namespace

absl::StatusOr<SharedTensor> SharedTensor::Private(DType dtype, Shape shape) {
  const TensorView view(nullptr, dtype, shape);
  const std::int64_t elements = view.num_elements();
  if (elements < 0 || elements > kMaxElements) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape: [", absl::StrJoin(shape, ", "), "] is negative or too large"));
  }
  const std::size_t bytes = view.num_bytes();
  void* memory = ::operator new(bytes, kAlignment, std::nothrow);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("out of memory for ", bytes, " bytes"));
  }
  std::memset(memory, 0, bytes);
  return SharedTensor(dtype, std::move(shape), memory, /*is_shared=*/false,
                      {memory, [](void* data) { ::operator delete(data, kAlignment); }});
}

std::span<float> SharedTensor::floats() const {
  if (dtype_ != DType::kFloat32) return {};
  return {static_cast<float*>(data_), num_bytes() / sizeof(float)};
}

std::span<std::uint16_t> SharedTensor::halves() const {
  if (dtype_ != DType::kFloat16 && dtype_ != DType::kBFloat16) return {};
  return {static_cast<std::uint16_t*>(data_), num_bytes() / sizeof(std::uint16_t)};
}

}  // namespace attention::client
