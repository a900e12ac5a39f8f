#include "server/wire/response_tensors.h"

#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {

absl::Status ResponseBudget::Refuse(absl::string_view what, std::int64_t bytes) const {
  return absl::InvalidArgumentError(
      absl::StrCat(what, ", ", bytes, " bytes, expected at most the ", max_bytes_ - bytes_,
                   " that are left of this request's ", max_bytes_, " (max-response-bytes)"));
}

absl::Status ResponseBudget::CountRows(absl::string_view what, std::int64_t rows,
                                       std::int64_t row_bytes) {
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(rows, row_bytes, &bytes)) {
    bytes = std::numeric_limits<std::int64_t>::max();
  }
  if (!HasRoom(bytes)) {
    return Refuse(absl::StrCat(what, ": ", rows, " rows of ", row_bytes, " bytes"), bytes);
  }
  Count(bytes);
  return absl::OkStatus();
}

absl::Status ResponseTensor::SetHeader(absl::string_view field, v1::DType dtype,
                                       std::initializer_list<std::int64_t> shape) {
  header_.set_dtype(dtype);
  std::int64_t bytes = ElementBytes(dtype);
  bool is_too_large = false;
  for (const std::int64_t dimension : shape) {
    header_.add_shape(dimension);
    is_too_large |= __builtin_mul_overflow(bytes, dimension, &bytes);
  }
  if (is_too_large) {
    return absl::InvalidArgumentError(absl::StrCat(field, " would have shape ", ShapeText(header_),
                                                   " of ", v1::DType_Name(dtype),
                                                   ", expected less than 2^63 bytes"));
  }
  size_ = static_cast<std::size_t>(bytes);
  return absl::OkStatus();
}

absl::Status ResponseTensor::Declare(absl::string_view field, v1::DType dtype,
                                     std::initializer_list<std::int64_t> shape,
                                     ResponseBudget& budget) {
  ATTENTION_RETURN_IF_ERROR(SetHeader(field, dtype, shape));
  const auto bytes = static_cast<std::int64_t>(size_);
  if (!budget.HasRoom(bytes)) {
    return budget.Refuse(absl::StrCat(field, " would have shape ", ShapeText(header_), " of ",
                                      v1::DType_Name(dtype)),
                         bytes);
  }
  budget.Count(bytes);
  has_value_ = true;
  return absl::OkStatus();
}

void ResponseTensor::Allocate(const ResponseAllocator& allocator) {
  if (!has_value_ || header_.has_shared_memory()) return;
  buffer_ = allocator.Get(size_);
  data_ = buffer_.data();
  charge_ = allocator.charge();
}

absl::Status ResponseTensor::DeclareShared(absl::string_view field, v1::DType dtype,
                                           std::initializer_list<std::int64_t> shape,
                                           const v1::SharedMemoryRef& place,
                                           RequestTensors& tensors) {
  ATTENTION_RETURN_IF_ERROR(SetHeader(field, dtype, shape));
  ATTENTION_ASSIGN_OR_RETURN(data_,
                             tensors.Resolve("output_to", place, static_cast<std::int64_t>(size_)));
  *header_.mutable_shared_memory() = place;
  has_value_ = true;
  return absl::OkStatus();
}

ResponseTensor ResponseTensor::Adopt(std::initializer_list<std::int64_t> shape,
                                     std::vector<float> data, ResultLedger::Charge charge) {
  ResponseTensor tensor;
  tensor.header_.set_dtype(v1::DTYPE_FLOAT32);
  for (const std::int64_t dimension : shape) tensor.header_.add_shape(dimension);
  tensor.size_ = data.size() * sizeof(float);
  tensor.adopted_ = std::move(data);
  tensor.data_ = reinterpret_cast<char*>(tensor.adopted_.data());
  tensor.charge_ = std::move(charge);
  tensor.has_value_ = true;
  return tensor;
}

void ResponseTensor::FillWithZeros() { std::memset(data_, 0, size_); }

void ResponseTensor::MoveTo(int field_number, codec::OutgoingMessage& message) {
  if (!has_value_) return;
  has_value_ = false;
  if (header_.has_shared_memory()) {
    message.Add(field_number, codec::OutgoingMessage(header_));
    return;
  }
  // gRPC's slices hold a plain pointer and how to let it go.
  struct Owner {
    PooledBuffer buffer;
    std::vector<float> adopted;
    ResultLedger::Charge charge;
  };
  auto* owner = new Owner{std::move(buffer_), std::move(adopted_), std::move(charge_)};
  grpc::Slice slice(
      data_, size_, [](void* memory) { delete static_cast<Owner*>(memory); }, owner);
  message.Add(field_number, codec::OutgoingMessage(header_, std::move(slice)));
}

}  // namespace attention::server
