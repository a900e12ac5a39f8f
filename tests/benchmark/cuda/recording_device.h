// A Device that remembers what a backend launched, to launch it again: a run's kernels without its
// copies, with inputs and tables where the first run left them.
//
// Kernels count in what was copied for them: Rewind copies it again, so that each Replay finds what
// the run found.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "kernels/cuda/device/device.h"

namespace attention::bench {

// Everything goes on to `device`. Thread-safety: as Device.
class RecordingDevice : public cuda::Device {
 public:
  explicit RecordingDevice(std::shared_ptr<cuda::Device> device);

  // Forgets what was recorded, and remembers what is copied to the device and launched from now on.
  void Start();
  void Stop();
  // Copies the same again, and launches the same again, in order with launches. The memory that it
  // concerns, the host's too, must be as it was: nothing else may have run through this device
  // since Stop.
  absl::Status Rewind();
  absl::Status Replay();

  const cuda::DeviceProperties& properties() const override;
  MemoryAllocator& memory() override;
  MemoryAllocator& host_memory() override;
  absl::Status CopyToDevice(cuda::Stream stream, void* device, const void* host,
                            std::size_t bytes) override;
  absl::Status CopyToHost(cuda::Stream stream, void* host, const void* device,
                          std::size_t bytes) override;
  absl::Status CopyOnDevice(void* to, const void* from, std::size_t bytes) override;
  bool IsPinned(const void* host) const override;
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::AttendArguments& arguments) override;
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::ProbeArguments& arguments) override;
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::AppendArguments& arguments) override;
  // Not recorded: attention needs none.
  absl::StatusOr<cuda::MatmulDevice*> matmuls() override;
  absl::StatusOr<std::unique_ptr<cuda::Event>> MakeEvent() override;
  absl::Status Record(cuda::Event& event, cuda::Stream stream) override;
  absl::Status Wait(cuda::Stream stream, const cuda::Event& event) override;
  absl::Status Await(const cuda::Event& event) override;
  absl::Status Synchronize() override;
  void Abandon() override;
  DeviceCeilings MeasureCeilings() override;
  std::unique_ptr<cuda::DeviceMeter> MakeMeter() override;

 private:
  using Command = std::function<absl::Status(cuda::Device&)>;
  absl::Status Do(const Command& command);
  absl::Status RunAll(const std::vector<Command>& commands);

  std::shared_ptr<cuda::Device> device_;
  bool is_recording_ = false;
  std::vector<Command> copies_;
  std::vector<Command> launches_;
};

}  // namespace attention::bench
