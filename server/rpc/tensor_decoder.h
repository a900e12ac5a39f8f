// Checks of wire tensors. Every error is INVALID_ARGUMENT and names the field, the actual and the
// expected value.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/tensor.pb.h"
#include "kernels/api/dtype.h"
#include "server/rpc/request_tensors.h"

namespace attention::server {

// float32, float16 or bfloat16.
absl::StatusOr<DType> DecodeDType(absl::string_view field, v1::DType dtype);
// What a cache may store: int8 and float8_e4m3 too.
absl::StatusOr<DType> DecodeKvDType(absl::string_view field, v1::DType dtype);
v1::DType EncodeDType(DType dtype);

// "[2, 3, 4]"
std::string ShapeText(const v1::Tensor& tensor);

// 0 for what no tensor has.
std::int64_t ElementBytes(v1::DType dtype);

// That the dtype is known, dimensions are not negative, and the data has exactly the bytes that
// dtype and shape say, without overflow, or lies within a region of shared memory. Before Place.
absl::Status CheckTensor(absl::string_view field, const v1::Tensor& tensor,
                         RequestTensors& tensors);

// CheckTensor, and that the tensor is float32 with shape [count].
absl::Status CheckVector(absl::string_view field, const v1::Tensor& tensor, std::int64_t count,
                         RequestTensors& tensors);

}  // namespace attention::server
