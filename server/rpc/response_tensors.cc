#include "server/rpc/response_tensors.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/tensor_decoder.h"

namespace attention::server {

absl::Status ResponseTensor::Allocate(absl::string_view field, v1::DType dtype,
                                      std::initializer_list<std::int64_t> shape,
                                      const ResponseAllocator& allocator) {
  header_.set_dtype(dtype);
  std::int64_t bytes = ElementBytes(dtype);
  bool is_too_large = false;
  for (const std::int64_t dimension : shape) {
    header_.add_shape(dimension);
    is_too_large |= __builtin_mul_overflow(bytes, dimension, &bytes);
  }
  if (is_too_large || bytes > allocator.max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " would have shape ", ShapeText(header_), " of ", v1::DType_Name(dtype),
                     ", expected at most ", allocator.max_bytes, " bytes"));
  }
  size_ = static_cast<std::size_t>(bytes);
  buffer_ = allocator.pool.Get(size_);
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
  tensor.has_value_ = true;
  return tensor;
}

void ResponseTensor::FillWithZeros() { std::memset(buffer_.data(), 0, size_); }

void ResponseTensor::MoveTo(int field_number, codec::OutgoingMessage& message) {
  if (!has_value_) return;
  has_value_ = false;
  void* data = buffer_.data();
  if (data == nullptr) data = adopted_.data();
  // gRPC's slices hold a plain pointer and how to let it go.
  struct Owner {
    PooledBuffer buffer;
    std::vector<float> adopted;
  };
  auto* owner = new Owner{std::move(buffer_), std::move(adopted_)};
  grpc::Slice slice(
      data, size_, [](void* memory) { delete static_cast<Owner*>(memory); }, owner);
  message.Add(field_number, codec::OutgoingMessage(header_, std::move(slice)));
}

}  // namespace attention::server
