#include "server/rpc/tensor_decoder.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr int kMaxRank = 8;

absl::Status BadDType(absl::string_view field, v1::DType dtype, absl::string_view expected) {
  const std::string name = v1::DType_Name(dtype);
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", name.empty() ? absl::StrCat(static_cast<int>(dtype)) : name,
                   ", expected ", expected));
}

}  // namespace

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
  if (dtype == v1::DTYPE_INT8) return DType::kInt8;
  if (dtype == v1::DTYPE_FLOAT8_E4M3) return DType::kFloat8E4M3;
  auto decoded = DecodeDType(field, dtype);
  if (decoded.ok()) return decoded;
  return BadDType(field, dtype,
                  "DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_BFLOAT16, DTYPE_INT8 or DTYPE_FLOAT8_E4M3");
}

absl::StatusOr<DType> DecodeDType(absl::string_view field, v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return DType::kFloat32;
    case v1::DTYPE_FLOAT16:
      return DType::kFloat16;
    case v1::DTYPE_BFLOAT16:
      return DType::kBFloat16;
    default:
      return BadDType(field, dtype, "DTYPE_FLOAT32, DTYPE_FLOAT16 or DTYPE_BFLOAT16");
  }
}

v1::DType EncodeDType(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return v1::DTYPE_FLOAT32;
    case DType::kFloat16:
      return v1::DTYPE_FLOAT16;
    case DType::kBFloat16:
      return v1::DTYPE_BFLOAT16;
    case DType::kInt8:
      return v1::DTYPE_INT8;
    case DType::kFloat8E4M3:
      return v1::DTYPE_FLOAT8_E4M3;
  }
  return v1::DTYPE_UNSPECIFIED;
}

std::string ShapeText(const v1::Tensor& tensor) {
  return absl::StrCat("[", absl::StrJoin(tensor.shape(), ", "), "]");
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
                                                   v1::DType_Name(tensor.dtype())));
  }
  return absl::OkStatus();
}

absl::Status CheckVector(absl::string_view field, const v1::Tensor& tensor, std::int64_t count,
                         RequestTensors& tensors) {
  ATTENTION_RETURN_IF_ERROR(CheckTensor(field, tensor, tensors));
  if (tensor.dtype() != v1::DTYPE_FLOAT32) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".dtype is ", v1::DType_Name(tensor.dtype()), ", expected DTYPE_FLOAT32"));
  }
  if (tensor.shape_size() != 1 || tensor.shape(0) != count) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".shape is ", ShapeText(tensor),
                                                   ", expected [", count, "], one a query head"));
  }
  return absl::OkStatus();
}

}  // namespace attention::server
