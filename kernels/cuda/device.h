// A device as the backend needs it: memory, copies and launches in one order. The GPU's is in
// runtime/; tests have one that executes the same kernels on the host.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "kernels/api/attention_backend.h"
#include "kernels/cuda/device_meter.h"
#include "kernels/cuda/device_types.h"
#include "kernels/cuda/kernel_id.h"

namespace attention::cuda {

struct DeviceProperties {
  std::string name;
  std::string architecture;  // "sm_90"
  int num_multiprocessors = 1;
  bool has_wgmma = false;  // of compute capability 9.0, which alone has these instructions
};

// Thread-safety: one thread at a time, but for properties() and the allocators.
//
// Errors are UNAVAILABLE for a device that does not answer or was lost, RESOURCE_EXHAUSTED for its
// memory, INTERNAL for a fault of a kernel. A fault stays: every later call answers it too, until
// the process makes another device.
class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceProperties& properties() const = 0;
  virtual MemoryAllocator& memory() = 0;       // that kernels read and write
  virtual MemoryAllocator& host_memory() = 0;  // of the host, from which copies are fast

  // In order with everything before. Host memory must stay until Synchronize.
  virtual absl::Status CopyToDevice(void* device, const void* host, std::size_t bytes) = 0;
  virtual absl::Status CopyToHost(void* host, const void* device, std::size_t bytes) = 0;
  virtual absl::Status Zero(void* device, std::size_t bytes) = 0;

  virtual absl::Status Launch(const KernelId& id, int num_blocks,
                              const AttendArguments& arguments) = 0;
  virtual absl::Status Launch(const KernelId& id, int num_blocks,
                              const ProbeArguments& arguments) = 0;
  virtual absl::Status Launch(const KernelId& id, int num_blocks,
                              const AppendArguments& arguments) = 0;

  // Waits for everything before, and reports its errors.
  virtual absl::Status Synchronize() = 0;

  virtual DeviceCeilings MeasureCeilings() = 0;
  // What benchmarks measure it with; null: there is none.
  virtual std::unique_ptr<DeviceMeter> MakeMeter() { return nullptr; }
};

}  // namespace attention::cuda
