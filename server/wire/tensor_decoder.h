// Checks of wire tensors. Every error is INVALID_ARGUMENT and names the field, the actual and the
// expected value.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/tensor.pb.h"
#include "kernels/api/dtype.h"
#include "server/wire/request_tensors.h"

namespace attention::server {

// float32, float16 or bfloat16.
absl::StatusOr<DType> DecodeDType(absl::string_view field, v1::DType dtype);
// Decodes a type that a cache may store: int8 and float8_e4m3 too.
absl::StatusOr<DType> DecodeKvDType(absl::string_view field, v1::DType dtype);

// "[2, 3, 4]"
std::string ShapeText(const v1::Tensor& tensor);

// "DTYPE_BOOL", or the number of one that is unknown here.
std::string DTypeText(v1::DType dtype);

// 0 for a type that no tensor has.
std::int64_t ElementBytes(v1::DType dtype);

// "q.shape is [5, 3, 8], expected `expected` at axis 1 of [tokens, heads, head_dim]".
absl::Status InvalidAxis(absl::string_view field, const v1::Tensor& tensor, int axis,
                         absl::string_view layout, absl::string_view expected);

// Checks that the dtype is known, dimensions are not negative, and the data has exactly the bytes
// that dtype and shape say, without overflow, or lies within a region of shared memory. To be
// called before Place, and after the dtype was compared with those that the field may have.
absl::Status CheckTensor(absl::string_view field, const v1::Tensor& tensor,
                         RequestTensors& tensors);

// Checks and places a float32 tensor of shape [count], whose elements must be finite.
absl::StatusOr<const float*> PlaceHeadVector(absl::string_view field, const v1::Tensor& tensor,
                                             std::int64_t count, RequestTensors& tensors);
absl::Status CheckFinite(absl::string_view field, const float* values, std::int64_t count);

absl::Status CheckBoolDType(absl::string_view field, v1::DType dtype);
// Checks that each of a bool tensor's bytes is 0 or 1.
absl::Status CheckBools(absl::string_view field, const v1::Tensor& tensor, const char* data);

}  // namespace attention::server
