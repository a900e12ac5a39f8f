// A Device that remembers what a backend launched, to launch it again: a run's kernels without its
// copies, with inputs and tables where the first run left them.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "kernels/cuda/device.h"

namespace attention::bench {

// Everything goes on to `device`. Thread-safety: as Device.
class RecordingDevice : public cuda::Device {
 public:
  explicit RecordingDevice(std::shared_ptr<cuda::Device> device);

  // Forgets what was recorded, and remembers what is launched and cleared from now on.
  void Start();
  void Stop();
  // Launches and clears the same again, in the same order. The memory that it concerns must be as
  // it was: nothing else may have run through this device since Stop.
  absl::Status Replay();

  const cuda::DeviceProperties& properties() const override;
  MemoryAllocator& memory() override;
  MemoryAllocator& host_memory() override;
  absl::Status CopyToDevice(void* device, const void* host, std::size_t bytes) override;
  absl::Status CopyToHost(void* host, const void* device, std::size_t bytes) override;
  absl::Status Zero(void* device, std::size_t bytes) override;
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::AttendArguments& arguments) override;
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::ProbeArguments& arguments) override;
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::AppendArguments& arguments) override;
  absl::Status Synchronize() override;
  DeviceCeilings MeasureCeilings() override;
  std::unique_ptr<cuda::DeviceMeter> MakeMeter() override;

 private:
  using Command = std::function<absl::Status(cuda::Device&)>;
  absl::Status Do(const Command& command);

  std::shared_ptr<cuda::Device> device_;
  bool is_recording_ = false;
  std::vector<Command> commands_;
};

}  // namespace attention::bench
