// A simulated GPU whose kernels can fault, and what CUDA then does: errors that stay, memory that
// is gone, a context that is made anew or not. Records what must not be done to a lost context.
//
// Thread-safety: one thread at a time, but for the allocators and the faults to come.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/device/device_context.h"

namespace attention::simt {

// Memory of one context: heap blocks that stay, poisoned, when it is lost.
class ContextMemory {
 public:
  ~ContextMemory();
  void* Allocate(std::size_t bytes);
  // True if it was one of these blocks.
  bool Free(void* memory);
  bool Holds(const void* memory, std::size_t bytes) const;
  void Poison();
  // True if no byte was written since Poison.
  bool IsUntouched() const;
  std::size_t num_blocks() const;

 private:
  mutable std::mutex mutex_;
  std::map<const std::byte*, std::size_t> blocks_;
};

class FaultyGpu {
 public:
  explicit FaultyGpu(std::string name = "simulated") : name_(std::move(name)) {}
  FaultyGpu(const FaultyGpu&) = delete;
  FaultyGpu& operator=(const FaultyGpu&) = delete;

  // In the present context, or in a new one when that was lost. As MakeCudaDevice.
  absl::StatusOr<std::shared_ptr<cuda::Device>> MakeDevice();

  // The launch after so many others faults: it does nothing, and every later call answers so.
  void FaultAfter(int num_launches) { launches_to_fault_ = num_launches; }
  // The answer of resetting the device from now on.
  void set_reset_status(absl::Status status) { reset_status_ = std::move(status); }
  int num_resets() const { return num_resets_; }
  // Blocks of the present context.
  std::size_t num_blocks() const { return memory_->num_blocks(); }

  // The accesses to memory that is not of the present context.
  std::vector<std::string> Misuse() const;

 private:
  friend class FaultyDevice;

  absl::Status Reset();
  void Report(std::string misuse);

  const std::string name_;
  std::shared_ptr<ContextMemory> memory_ = std::make_shared<ContextMemory>();
  std::vector<std::shared_ptr<ContextMemory>> lost_memories_;
  std::atomic<int> launches_to_fault_{-1};
  absl::Status fault_;  // that stays
  absl::Status reset_status_;
  std::atomic<int> num_resets_{0};
  mutable std::mutex mutex_;
  std::vector<std::string> misuse_;
  cuda::ContextTable contexts_{[this](int) { return Reset(); }};
};

}  // namespace attention::simt
