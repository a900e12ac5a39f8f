// The memory of a run: what goes to the device, what kernels keep there, what comes back. Buffers
// grow and are kept for the next run.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/device/device.h"

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

// The events of a part of a run.
struct PartEvents {
  std::unique_ptr<Event> uploaded, computed, downloaded;
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

  // Waits when the device may still be using it: copies would write to memory of somebody else.
  ~RunMemory() {
    if (is_in_flight) device->Synchronize().IgnoreError();
  }
  RunMemory(const RunMemory&) = delete;
  RunMemory& operator=(const RunMemory&) = delete;

  // Events for so many parts, and `done`.
  absl::Status ReserveEvents(std::size_t num_parts);

  std::shared_ptr<Device> device;  // a yielded plan may outlive its backend
  GrowingBuffer host_upload, host_results;
  GrowingBuffer upload, scratch, results;
  std::vector<PartEvents> parts;
  // Reached when the device has done with all of this. Null: nothing was ever begun.
  std::unique_ptr<Event> done;
  // True while the device may still be using it; `done` tells when it has ended.
  bool is_in_flight = false;
};

// The memories of a device's runs and appends, kept for those that follow. There are two that
// nobody holds: the host fills one while the device still reads the other.
class RunMemoryPool {
 public:
  explicit RunMemoryPool(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  // One that the device has done with; waits if there is none and enough are on their way.
  absl::StatusOr<std::unique_ptr<RunMemory>> Lease();
  // Takes back the memory of a run that has ended, or has failed somewhere on its way.
  void Retire(std::unique_ptr<RunMemory> memory);

 private:
  static constexpr std::size_t kMaxIdle = 2;

  const std::shared_ptr<Device> device_;
  std::deque<std::unique_ptr<RunMemory>> idle_;  // the least recently used first
};

}  // namespace attention::cuda
