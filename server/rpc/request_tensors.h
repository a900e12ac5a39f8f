// Where the tensors of a request lie while it waits and is computed: in buffers of the pool, each
// tensor at the start of a cache line.
//
// This is the one copy on the way in. The kernels want whole rows at aligned addresses (rows that
// begin on a cache line are worth 10-25 % of a small prefill); gRPC's buffers end wherever a read
// of the socket did.
//
// Thread-safety: none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/v1/tensor.pb.h"
#include "proto/codec/received_message.h"
#include "server/rpc/buffer_pool.h"

namespace attention::server {

class RequestTensors {
 public:
  // The references must outlive every call of a method; what Place returned lives as long as this.
  RequestTensors(const codec::ReceivedMessage& message, BufferPool& pool)
      : message_(&message), pool_(&pool) {}

  // Bytes of a tensor's data.
  std::size_t Size(const v1::Tensor& tensor) const { return message_->Data(tensor).size(); }

  // Copies the tensor's data to a place of its own, 64-byte aligned. Once for each tensor.
  const char* Place(const v1::Tensor& tensor);

  std::int64_t copied_bytes() const { return copied_bytes_; }

 private:
  const codec::ReceivedMessage* message_;
  BufferPool* pool_;
  std::vector<PooledBuffer> buffers_;
  std::size_t used_ = 0;  // of the last buffer
  std::int64_t copied_bytes_ = 0;
};

}  // namespace attention::server
