// The memory of a run: what goes to the device in one copy, what kernels keep there, what comes
// back in one copy. Buffers grow and are kept for the next run.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.h"

namespace attention::cuda {

// A growable buffer of an allocator, whose owner outlives it. Contents are lost when it grows.
class GrowingBuffer {
 public:
  explicit GrowingBuffer(MemoryAllocator& allocator) : allocator_(allocator) {}
  ~GrowingBuffer() { Release(); }
  GrowingBuffer(const GrowingBuffer&) = delete;
  GrowingBuffer& operator=(const GrowingBuffer&) = delete;

  // RESOURCE_EXHAUSTED when memory is out.
  absl::Status Reserve(std::size_t bytes) {
    if (bytes <= bytes_) return absl::OkStatus();
    Release();
    data_ = static_cast<char*>(allocator_.Allocate(bytes));
    if (data_ == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for ", bytes, " bytes of a run's tensors"));
    }
    bytes_ = bytes;
    return absl::OkStatus();
  }

  char* data() const { return data_; }

 private:
  void Release() {
    if (data_ != nullptr) allocator_.Free(data_, bytes_);
    data_ = nullptr;
    bytes_ = 0;
  }

  MemoryAllocator& allocator_;
  char* data_ = nullptr;
  std::size_t bytes_ = 0;
};

struct RunMemory {
  explicit RunMemory(std::shared_ptr<Device> owner)
      : device(std::move(owner)),
        host_upload(device->host_memory()),
        host_results(device->host_memory()),
        upload(device->memory()),
        scratch(device->memory()),
        results(device->memory()) {}

  absl::Status Reserve(std::size_t upload_bytes, std::size_t scratch_bytes,
                       std::size_t result_bytes) {
    for (const auto& [buffer, bytes] : {std::pair{&host_upload, upload_bytes},
                                        {&host_results, result_bytes},
                                        {&upload, upload_bytes},
                                        {&scratch, scratch_bytes},
                                        {&results, result_bytes}}) {
      if (absl::Status status = buffer->Reserve(bytes); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  std::shared_ptr<Device> device;  // a yielded plan may outlive its backend
  GrowingBuffer host_upload, host_results;
  GrowingBuffer upload, scratch, results;
};

}  // namespace attention::cuda
