#include "server/rpc/response_tensors.h"

#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/rpc/tensor_decoder.h"

namespace attention::server {

absl::Status ResponseTensor::SetHeader(absl::string_view field, v1::DType dtype,
                                       std::initializer_list<std::int64_t> shape,
                                       std::int64_t max_bytes) {
  header_.set_dtype(dtype);
  std::int64_t bytes = ElementBytes(dtype);
  bool is_too_large = false;
  for (const std::int64_t dimension : shape) {
    header_.add_shape(dimension);
    is_too_large |= __builtin_mul_overflow(bytes, dimension, &bytes);
  }
  if (is_too_large || bytes > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(field, " would have shape ", ShapeText(header_),
                                                   " of ", v1::DType_Name(dtype),
                                                   ", expected at most ", max_bytes, " bytes"));
  }
  size_ = static_cast<std::size_t>(bytes);
  return absl::OkStatus();
}

absl::Status ResponseTensor::Allocate(absl::string_view field, v1::DType dtype,
                                      std::initializer_list<std::int64_t> shape,
                                      const ResponseAllocator& allocator) {
  ATTENTION_RETURN_IF_ERROR(SetHeader(field, dtype, shape, allocator.max_bytes));
  buffer_ = allocator.pool.Get(size_);
  data_ = buffer_.data();
  has_value_ = true;
  return absl::OkStatus();
}

absl::Status ResponseTensor::AllocateShared(absl::string_view field, v1::DType dtype,
                                            std::initializer_list<std::int64_t> shape,
                                            const v1::SharedMemoryRef& place,
                                            RequestTensors& tensors) {
  ATTENTION_RETURN_IF_ERROR(
      SetHeader(field, dtype, shape, std::numeric_limits<std::int64_t>::max()));
  ATTENTION_ASSIGN_OR_RETURN(data_,
                             tensors.Resolve("output_to", place, static_cast<std::int64_t>(size_)));
  *header_.mutable_shared_memory() = place;
  has_value_ = true;
  return absl::OkStatus();
}

ResponseTensor ResponseTensor::Adopt(std::initializer_list<std::int64_t> shape,
                                     std::vector<float> data) {
  ResponseTensor tensor;
  tensor.header_.set_dtype(v1::DTYPE_FLOAT32);
  for (const std::int64_t dimension : shape) tensor.header_.add_shape(dimension);
  tensor.size_ = data.size() * sizeof(float);
  tensor.adopted_ = std::move(data);
  tensor.data_ = reinterpret_cast<char*>(tensor.adopted_.data());
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
  };
  auto* owner = new Owner{std::move(buffer_), std::move(adopted_)};
  grpc::Slice slice(
      data_, size_, [](void* memory) { delete static_cast<Owner*>(memory); }, owner);
  message.Add(field_number, codec::OutgoingMessage(header_, std::move(slice)));
}

}  // namespace attention::server
