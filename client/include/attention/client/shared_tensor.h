// Tensors that a server on this host reads where they were written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "attention/client/tensor.h"

namespace attention::client {

// Memory for a tensor, to be filled by the caller and given to calls as its view(). Copies share
// the memory, which lives until the last copy is gone and no call needs it.
//
// Where it is shared, requests carry a reference instead of its bytes. Its contents must then stay
// as they are until the call is over, not just until the function returns: a server that is still
// reading sees what is written meanwhile. After a call that ended without the server's answer
// (CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE) the server may be reading still: write to another.
//
// Thread-safety: the memory is the caller's to synchronise; the rest is immutable.
class SharedTensor {
 public:
  // Absent.
  SharedTensor() = default;
  // On memory of someone else's, kept by `owner`.
  SharedTensor(DType dtype, Shape shape, void* data, bool is_shared, std::shared_ptr<void> owner)
      : dtype_(dtype),
        shape_(std::move(shape)),
        data_(data),
        is_shared_(is_shared),
        owner_(std::move(owner)) {}
  // On memory of this process alone, filled with zeros. INVALID_ARGUMENT: the shape has a negative
  // dimension, or is too large; RESOURCE_EXHAUSTED: out of memory.
  static absl::StatusOr<SharedTensor> Private(DType dtype, Shape shape);

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::size_t num_bytes() const { return view().num_bytes(); }
  // On a 64-byte boundary.
  void* data() const { return data_; }
  // The elements of a float32 tensor; empty for every other type.
  std::span<float> floats() const;
  // The bit patterns of a float16 or bfloat16 tensor; empty for every other type.
  std::span<std::uint16_t> halves() const;
  TensorView view() const { return TensorView(data_, dtype_, shape_); }
  // True if servers can read it in place; otherwise calls copy it as any other tensor.
  bool is_shared() const { return is_shared_; }

 private:
  DType dtype_ = DType::kFloat32;
  Shape shape_ = {};
  void* data_ = nullptr;
  bool is_shared_ = false;
  std::shared_ptr<void> owner_ = nullptr;
};

// The memory that a client shares, and its use.
struct SharedMemoryUsage {
  // Targets whose server shares memory with this client.
  int num_channels = 0;
  // Memory that is mapped, and of it what requests, results and tensors hold.
  std::int64_t mapped_bytes = 0;
  std::int64_t used_bytes = 0;
  // Requests that were sent with their tensors in shared memory so far, each attempt counted.
  std::int64_t num_requests = 0;
};

}  // namespace attention::client
