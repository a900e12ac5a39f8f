// The tensors of a response: kernels write them where gRPC sends them from.
#pragma once

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "attention/v1/tensor.pb.h"
#include "proto/codec/outgoing_message.h"
#include "server/rpc/buffer_pool.h"
#include "server/rpc/request_tensors.h"

namespace attention::server {

// Makes the tensors of one response. Thread-safety: of the pool.
struct ResponseAllocator {
  BufferPool& pool;
  std::int64_t max_bytes = 0;  // of each tensor
};

class ResponseTensor {
 public:
  // Empty: the response does not have it.
  ResponseTensor() = default;

  // Sets dtype and shape and gets the memory, whose contents are unspecified. INVALID_ARGUMENT when
  // it would exceed the allocator's limit.
  absl::Status Allocate(absl::string_view field, v1::DType dtype,
                        std::initializer_list<std::int64_t> shape,
                        const ResponseAllocator& allocator);

  // The same in the client's shared memory, where `tensors` keeps it mapped. Other errors are those
  // of RequestTensors::Resolve.
  absl::Status AllocateShared(absl::string_view field, v1::DType dtype,
                              std::initializer_list<std::int64_t> shape,
                              const v1::SharedMemoryRef& place, RequestTensors& tensors);

  // A float32 tensor whose memory is there already.
  static ResponseTensor Adopt(std::initializer_list<std::int64_t> shape, std::vector<float> data);

  bool has_value() const { return has_value_; }
  const v1::Tensor& header() const { return header_; }  // dtype and shape
  std::size_t size() const { return size_; }            // bytes of data
  char* data() { return data_; }
  float* floats() { return reinterpret_cast<float*>(data_); }
  void FillWithZeros();

  // Adds the tensor to a message as `field_number`, if there is one. Its memory, unless shared, now
  // belongs to the message, and goes back to the pool when the bytes have left.
  void MoveTo(int field_number, codec::OutgoingMessage& message);

 private:
  absl::Status SetHeader(absl::string_view field, v1::DType dtype,
                         std::initializer_list<std::int64_t> shape, std::int64_t max_bytes);

  bool has_value_ = false;
  v1::Tensor header_;
  PooledBuffer buffer_;
  std::vector<float> adopted_;  // instead of the buffer
  char* data_ = nullptr;        // in the buffer, in adopted_ or in shared memory
  std::size_t size_ = 0;
};

}  // namespace attention::server
