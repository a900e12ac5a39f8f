#include "server/wire/tensor_decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/codec/dtypes.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr int kMaxRank = 8;

absl::Status BadDType(absl::string_view field, v1::DType dtype, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", DTypeText(dtype), ", expected ", expected));
}

// The number of elements of a tensor that CheckTensor found good.
std::int64_t NumElements(const v1::Tensor& tensor) {
  std::int64_t count = 1;
  for (const std::int64_t dimension : tensor.shape()) count *= dimension;
  return count;
}

}  // namespace

std::string DTypeText(v1::DType dtype) {
  const std::string& name = v1::DType_Name(dtype);
  return name.empty() ? absl::StrCat(static_cast<int>(dtype)) : name;
}

std::int64_t ElementBytes(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return 4;
    case v1::DTYPE_FLOAT16:
    case v1::DTYPE_BFLOAT16:
      return 2;
    case v1::DTYPE_BOOL:
      return 1;
    default:
      return 0;
  }
}

absl::StatusOr<DType> DecodeKvDType(absl::string_view field, v1::DType dtype) {
  if (const auto known = codec::DTypeFromWire<DType>(dtype); known.has_value()) return *known;
  return BadDType(field, dtype,
                  "DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_BFLOAT16, DTYPE_INT8 or DTYPE_FLOAT8_E4M3");
}

absl::StatusOr<DType> DecodeDType(absl::string_view field, v1::DType dtype) {
  const auto known = codec::DTypeFromWire<DType>(dtype);
  if (known.has_value() && !HasRowScales(*known)) return *known;
  return BadDType(field, dtype, "DTYPE_FLOAT32, DTYPE_FLOAT16 or DTYPE_BFLOAT16");
}

std::string ShapeText(const v1::Tensor& tensor) {
  return absl::StrCat("[", absl::StrJoin(tensor.shape(), ", "), "]");
}

absl::Status InvalidAxis(absl::string_view field, const v1::Tensor& tensor, int axis,
                         absl::string_view layout, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ".shape is ", ShapeText(tensor),
                                                 ", expected ", expected, " at axis ", axis, " of ",
                                                 layout));
}

absl::Status CheckTensor(absl::string_view field, const v1::Tensor& tensor,
                         RequestTensors& tensors) {
  std::int64_t bytes = ElementBytes(tensor.dtype());
  if (bytes == 0) {
    return BadDType(absl::StrCat(field, ".dtype"), tensor.dtype(),
                    "DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_BFLOAT16 or DTYPE_BOOL");
  }
  if (tensor.shape_size() > kMaxRank) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".shape has rank ", tensor.shape_size(),
                                                   ", expected at most ", kMaxRank));
  }
  for (int axis = 0; axis < tensor.shape_size(); ++axis) {
    const std::int64_t dimension = tensor.shape(axis);
    if (dimension < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".shape[", axis, "] is ", dimension, ", expected 0 or more"));
    }
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".shape is ", ShapeText(tensor),
                                                     ", whose size in bytes overflows 64 bits"));
    }
  }
  if (tensor.has_shared_memory()) return tensors.ResolveTensor(field, tensor, bytes);
  const std::size_t size = tensors.Size(tensor);
  if (static_cast<std::uint64_t>(bytes) != size) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".data has ", size, " bytes, expected ",
                                                   bytes, " for shape ", ShapeText(tensor), " of ",
                                                   DTypeText(tensor.dtype())));
  }
  return absl::OkStatus();
}

absl::StatusOr<const float*> PlaceHeadVector(absl::string_view field, const v1::Tensor& tensor,
                                             std::int64_t count, RequestTensors& tensors) {
  if (tensor.dtype() != v1::DTYPE_FLOAT32) {
    return BadDType(absl::StrCat(field, ".dtype"), tensor.dtype(), "DTYPE_FLOAT32");
  }
  ATTENTION_RETURN_IF_ERROR(CheckTensor(field, tensor, tensors));
  if (tensor.shape_size() != 1 || tensor.shape(0) != count) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".shape is ", ShapeText(tensor),
                                                   ", expected [", count, "], one a query head"));
  }
  const auto* values = reinterpret_cast<const float*>(tensors.Place(tensor));
  ATTENTION_RETURN_IF_ERROR(CheckFinite(field, values, count));
  return values;
}

absl::Status CheckFinite(absl::string_view field, const float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    float value = 0;  // shared memory need not be aligned
    std::memcpy(&value, values + i, sizeof(value));
    if (std::isfinite(value)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(field, "[", i, "] is ", value, ", expected a finite number"));
  }
  return absl::OkStatus();
}

absl::Status CheckBoolDType(absl::string_view field, v1::DType dtype) {
  if (dtype == v1::DTYPE_BOOL) return absl::OkStatus();
  return BadDType(absl::StrCat(field, ".dtype"), dtype, "DTYPE_BOOL");
}

absl::Status CheckBools(absl::string_view field, const v1::Tensor& tensor, const char* data) {
  constexpr std::uint64_t kNotBool = 0xfefefefefefefefe;
  const std::int64_t count = NumElements(tensor);
  std::uint64_t bits = 0;
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + i, sizeof(word));
    bits |= word;
  }
  for (; i < count; ++i) bits |= static_cast<unsigned char>(data[i]);
  if ((bits & kNotBool) == 0) return absl::OkStatus();
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
  const std::int64_t wrong =
      std::find_if(bytes, bytes + count, [](int b) { return b > 1; }) - bytes;
  // Shared memory may have changed since.
  const int value = wrong < count ? bytes[wrong] : 0;
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".data[", wrong, "] is ", value, ", expected 0 or 1"));
}

}  // namespace attention::server
