// The places of a request's tensors while it waits and is computed: in the client's shared memory,
// or in buffers of the pool, each tensor at the start of a cache line.
//
// The latter is the one copy on the way in. The kernels want whole rows at aligned addresses (rows
// that begin on a cache line are worth 10-25 % of a small prefill); gRPC's buffers end wherever a
// read of the socket did.
//
// Thread-safety: none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/tensor.pb.h"
#include "kernels/api/tensor_view.h"
#include "proto/codec/received_message.h"
#include "server/memory/buffer_pool.h"
#include "server/shared_memory/region_table.h"

namespace attention::server {

class RequestTensors {
 public:
  // The references must outlive every call of a method; what Place and Resolve return lives as long
  // as this. `regions` is null where shared memory is not offered.
  RequestTensors(const codec::ReceivedMessage& message, BufferPool& pool,
                 const RegionTable* regions = nullptr, std::string tenant = {})
      : message_(&message),
        pool_(&pool),
        regions_(regions),
        tenant_(std::move(tenant)),
        mark_(MarkOf(tenant_)) {}

  // Bytes of a tensor's data in the message.
  std::size_t Size(const v1::Tensor& tensor) const { return message_->Data(tensor).size(); }

  // The bytes at a place in shared memory. INVALID_ARGUMENT when they are not all in the region,
  // NOT_FOUND when there is no such region for the tenant, FAILED_PRECONDITION when shared memory
  // is not offered; all name `field`.
  absl::StatusOr<char*> Resolve(absl::string_view field, const v1::SharedMemoryRef& place,
                                std::int64_t bytes);

  // Resolves the place of a tensor of so many bytes that lies in shared memory, for Place.
  absl::Status ResolveTensor(absl::string_view field, const v1::Tensor& tensor, std::int64_t bytes);

  // Returns the place of the tensor: in shared memory, or a place of its own to which its data is
  // copied, 64-byte aligned. Once for each tensor.
  const char* Place(const v1::Tensor& tensor);

  // Rows that the kernels read once and store in an order of their own: they are read where they
  // were received, which makes that their one copy. Only a row that was cut is put together at a
  // place of its own. `rows` has dtype and strides, and gets the data if it lies in one piece; else
  // `pieces` do. Once for each tensor; the message must live until the rows have been read.
  void PlaceRows(const v1::Tensor& tensor, RowsView* rows, std::vector<RowsPiece>* pieces);

  TenantMark mark() const { return mark_; }  // of the tenant
  std::int64_t copied_bytes() const { return copied_bytes_; }
  // The bytes of the whole message.
  std::int64_t message_bytes() const { return static_cast<std::int64_t>(message_->size()); }

 private:
  // A place of its own for so many bytes.
  char* Reserve(std::size_t bytes);

  const codec::ReceivedMessage* message_;
  BufferPool* pool_;
  const RegionTable* regions_;
  std::string tenant_;
  TenantMark mark_;
  std::vector<PooledBuffer> buffers_;
  std::size_t used_ = 0;  // of the last buffer
  std::vector<std::shared_ptr<const SharedRegion>> used_regions_;
  std::string last_region_id_;                                 // of the last one
  std::unordered_map<const v1::Tensor*, const char*> shared_;  // resolved tensors
  std::int64_t copied_bytes_ = 0;
};

}  // namespace attention::server
