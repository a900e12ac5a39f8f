// Checks of wire tensors. Every error is INVALID_ARGUMENT and names the field, the actual and the
// expected value.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/tensor.pb.h"
#include "kernels/api/dtype.h"

namespace attention::server {

// float32, float16 or bfloat16.
absl::StatusOr<DType> DecodeDType(absl::string_view field, v1::DType dtype);
// What a cache may store: int8 too.
absl::StatusOr<DType> DecodeKvDType(absl::string_view field, v1::DType dtype);
v1::DType EncodeDType(DType dtype);

// "[2, 3, 4]"
std::string ShapeText(const v1::Tensor& tensor);

// That the dtype is known, dimensions are not negative, and the data has exactly the bytes that
// dtype and shape say, without overflow.
absl::Status CheckTensor(absl::string_view field, const v1::Tensor& tensor);

// CheckTensor, and that the tensor is float32 with shape [count].
absl::Status CheckVector(absl::string_view field, const v1::Tensor& tensor, std::int64_t count);

// Sets dtype and shape and sizes the data; its bytes are zero. INVALID_ARGUMENT when it would
// exceed max_bytes.
absl::Status AllocateTensor(absl::string_view field, v1::DType dtype,
                            std::initializer_list<std::int64_t> shape, std::int64_t max_bytes,
                            v1::Tensor* tensor);

}  // namespace attention::server
