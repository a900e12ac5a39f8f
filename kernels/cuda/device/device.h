// A device as the backend needs it: memory, and streams of copies and launches. The GPU's is in
// plugin/; tests have one that executes the same kernels on the host.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/contract/kernel_id.h"
#include "kernels/cuda/device/device_meter.h"
#include "kernels/cuda/device/matmul.h"

namespace attention::cuda {

struct DeviceProperties {
  std::string name;
  std::string architecture;  // "sm_90"
  int num_multiprocessors = 1;
  bool has_wgmma = false;  // of compute capability 9.0, which alone has these instructions
};

// Where a device's work is queued. Each stream is in order; nothing orders two of them but events.
enum class Stream {
  kUpload,    // for copies to the device that overlap launches
  kCompute,   // launches, and copies that are to be in order with them
  kDownload,  // for copies from the device that overlap launches
};
inline constexpr int kNumStreams = 3;

// A point in a stream that others, and the host, can wait for. Made and recorded by its device.
class Event {
 public:
  virtual ~Event() = default;
};

// Thread-safety: one thread at a time, but for properties() and the allocators.
//
// Errors are UNAVAILABLE for a device that does not answer or was lost, RESOURCE_EXHAUSTED for its
// memory, INTERNAL for a fault of a kernel. A fault stays: every later call answers it too, and
// what was in the device's memory is gone. Another device of the same GPU begins with a new context
// (device_context.h), if the driver makes one.
class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceProperties& properties() const = 0;
  virtual MemoryAllocator& memory() = 0;       // that kernels read and write
  virtual MemoryAllocator& host_memory() = 0;  // of the host, from which copies are fast

  // Queued. The host's memory must stay as it is, and the device's must not be freed, until the
  // host has waited for what comes after.
  virtual absl::Status CopyToDevice(Stream stream, void* device, const void* host,
                                    std::size_t bytes) = 0;
  virtual absl::Status CopyToHost(Stream stream, void* host, const void* device,
                                  std::size_t bytes) = 0;

  // From the device's memory to the device's memory, in kCompute.
  virtual absl::Status CopyOnDevice(void* to, const void* from, std::size_t bytes) = 0;

  // True if copies go straight from and to such memory of the host. Else the driver copies once
  // more, and a copy to the host may wait for the device.
  virtual bool IsPinned(const void* host) const = 0;

  // In kCompute.
  virtual absl::Status Launch(const KernelId& id, int num_blocks,
                              const AttendArguments& arguments) = 0;
  virtual absl::Status Launch(const KernelId& id, int num_blocks,
                              const ProbeArguments& arguments) = 0;
  virtual absl::Status Launch(const KernelId& id, int num_blocks,
                              const AppendArguments& arguments) = 0;

  // Products, in kCompute. UNIMPLEMENTED or UNAVAILABLE say why there are none; attention needs
  // none.
  virtual absl::StatusOr<MatmulDevice*> matmuls() = 0;

  // An event that has been reached.
  virtual absl::StatusOr<std::unique_ptr<Event>> MakeEvent() = 0;
  // From now on the event is reached when all that the stream has been given so far is done.
  virtual absl::Status Record(Event& event, Stream stream) = 0;
  // Work that the stream is given from now on waits for the event as it is recorded now.
  virtual absl::Status Wait(Stream stream, const Event& event) = 0;
  // The host waits, and is told of errors.
  virtual absl::Status Await(const Event& event) = 0;
  // The same for everything in every stream.
  virtual absl::Status Synchronize() = 0;

  // Gives the context up, as a fault does: nothing of it is used or given back any more.
  virtual void Abandon() = 0;

  virtual DeviceCeilings MeasureCeilings() = 0;
  // The meter of benchmarks; null: there is none.
  virtual std::unique_ptr<DeviceMeter> MakeMeter() { return nullptr; }
};

}  // namespace attention::cuda
