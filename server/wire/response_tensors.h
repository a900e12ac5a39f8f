// The tensors of a response: kernels write them where gRPC sends them from.
#pragma once

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/tensor.pb.h"
#include "proto/codec/outgoing_message.h"
#include "server/base/status_macros.h"
#include "server/memory/buffer_pool.h"
#include "server/memory/result_ledger.h"
#include "server/wire/request_tensors.h"

namespace attention::server {

// The bytes that all results of one request take. Counted in full before any of it is allocated.
class ResponseBudget {
 public:
  explicit ResponseBudget(std::int64_t max_bytes) : max_bytes_(max_bytes) {}

  bool HasRoom(std::int64_t bytes) const { return bytes <= max_bytes_ - bytes_; }
  void Count(std::int64_t bytes) { bytes_ += bytes; }
  // INVALID_ARGUMENT: there is no room for `what`, as in "output would have shape [1, 2]".
  absl::Status Refuse(absl::string_view what, std::int64_t bytes) const;
  // Counts so many rows of `what`, or refuses them.
  absl::Status CountRows(absl::string_view what, std::int64_t rows, std::int64_t row_bytes);

  std::int64_t bytes() const { return bytes_; }

 private:
  const std::int64_t max_bytes_;
  std::int64_t bytes_ = 0;
};

class ResponseAllocator;

class ResponseTensor {
 public:
  // Empty: the response does not have it.
  ResponseTensor() = default;

  // Sets dtype and shape, and counts what the memory will take. INVALID_ARGUMENT when the budget
  // has not so much left.
  absl::Status Declare(absl::string_view field, v1::DType dtype,
                       std::initializer_list<std::int64_t> shape, ResponseBudget& budget);

  // Sets dtype and shape of a tensor in the client's shared memory, where `tensors` keeps it
  // mapped. Other errors are those of RequestTensors::Resolve.
  absl::Status DeclareShared(absl::string_view field, v1::DType dtype,
                             std::initializer_list<std::int64_t> shape,
                             const v1::SharedMemoryRef& place, RequestTensors& tensors);

  // Gets the memory of a tensor, if it was declared and is not shared; contents are unspecified.
  // Throws std::bad_alloc when memory is out.
  void Allocate(const ResponseAllocator& allocator);

  // Makes a float32 tensor of values that are there already; it holds `charge`.
  static ResponseTensor Adopt(std::initializer_list<std::int64_t> shape, std::vector<float> data,
                              ResultLedger::Charge charge = nullptr);

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
                         std::initializer_list<std::int64_t> shape);

  bool has_value_ = false;
  ResultLedger::Charge charge_;
  v1::Tensor header_;
  PooledBuffer buffer_;
  std::vector<float> adopted_;  // instead of the buffer
  char* data_ = nullptr;        // in the buffer, in adopted_ or in shared memory
  std::size_t size_ = 0;
};

// Memory for the results of one request: first all of them are counted, then they are admitted as a
// whole, then allocated.
class ResponseAllocator {
 public:
  // Returns what holds the bytes of all results, or why the server has no room for them.
  using Admission = absl::FunctionRef<absl::StatusOr<ResultLedger::Charge>(std::int64_t bytes)>;

  // The references must outlive the allocator. `owner`: of the request.
  ResponseAllocator(BufferPool& pool, TenantMark owner, std::int64_t max_bytes, Admission admission)
      : pool_(pool), owner_(owner), budget_(max_bytes), admission_(admission) {}

  ResponseBudget& budget() { return budget_; }
  // Once, when everything has been counted.
  absl::Status Admit() {
    ATTENTION_ASSIGN_OR_RETURN(charge_, admission_(budget_.bytes()));
    return absl::OkStatus();
  }
  // A buffer for the request. Throws std::bad_alloc when memory is out.
  PooledBuffer Get(std::size_t bytes) const { return pool_.Get(bytes, owner_); }
  // To be held by whatever holds a part of the memory.
  const ResultLedger::Charge& charge() const { return charge_; }

 private:
  BufferPool& pool_;
  const TenantMark owner_;
  ResponseBudget budget_;
  const Admission admission_;
  ResultLedger::Charge charge_;
};

}  // namespace attention::server
