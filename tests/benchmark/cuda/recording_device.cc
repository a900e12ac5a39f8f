#include "tests/benchmark/cuda/recording_device.h"

#include <utility>

namespace attention::bench {

using cuda::Device;

RecordingDevice::RecordingDevice(std::shared_ptr<Device> device) : device_(std::move(device)) {}

void RecordingDevice::Start() {
  copies_.clear();
  launches_.clear();
  is_recording_ = true;
}

void RecordingDevice::Stop() { is_recording_ = false; }

absl::Status RecordingDevice::Rewind() { return RunAll(copies_); }
absl::Status RecordingDevice::Replay() { return RunAll(launches_); }

absl::Status RecordingDevice::RunAll(const std::vector<Command>& commands) {
  for (const Command& command : commands) {
    if (absl::Status status = command(*device_); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RecordingDevice::Do(const Command& command) {
  if (is_recording_) launches_.push_back(command);
  return command(*device_);
}

const cuda::DeviceProperties& RecordingDevice::properties() const { return device_->properties(); }
MemoryAllocator& RecordingDevice::memory() { return device_->memory(); }
MemoryAllocator& RecordingDevice::host_memory() { return device_->host_memory(); }

absl::Status RecordingDevice::CopyToDevice(cuda::Stream stream, void* device, const void* host,
                                           std::size_t bytes) {
  if (is_recording_) {
    copies_.push_back(
        [=](Device& to) { return to.CopyToDevice(cuda::Stream::kCompute, device, host, bytes); });
  }
  return device_->CopyToDevice(stream, device, host, bytes);
}
absl::Status RecordingDevice::CopyToHost(cuda::Stream stream, void* host, const void* device,
                                         std::size_t bytes) {
  return device_->CopyToHost(stream, host, device, bytes);
}

absl::Status RecordingDevice::CopyOnDevice(void* to, const void* from, std::size_t bytes) {
  return device_->CopyOnDevice(to, from, bytes);
}

bool RecordingDevice::IsPinned(const void* host) const { return device_->IsPinned(host); }
absl::Status RecordingDevice::Launch(const cuda::KernelId& id, int num_blocks,
                                     const cuda::AttendArguments& arguments) {
  return Do([=](Device& to) { return to.Launch(id, num_blocks, arguments); });
}
absl::Status RecordingDevice::Launch(const cuda::KernelId& id, int num_blocks,
                                     const cuda::ProbeArguments& arguments) {
  return Do([=](Device& to) { return to.Launch(id, num_blocks, arguments); });
}
absl::Status RecordingDevice::Launch(const cuda::KernelId& id, int num_blocks,
                                     const cuda::AppendArguments& arguments) {
  return Do([=](Device& to) { return to.Launch(id, num_blocks, arguments); });
}

absl::StatusOr<cuda::MatmulDevice*> RecordingDevice::matmuls() { return device_->matmuls(); }
absl::StatusOr<std::unique_ptr<cuda::Event>> RecordingDevice::MakeEvent() {
  return device_->MakeEvent();
}
absl::Status RecordingDevice::Record(cuda::Event& event, cuda::Stream stream) {
  return device_->Record(event, stream);
}
absl::Status RecordingDevice::Wait(cuda::Stream stream, const cuda::Event& event) {
  return device_->Wait(stream, event);
}
absl::Status RecordingDevice::Await(const cuda::Event& event) { return device_->Await(event); }

absl::Status RecordingDevice::Synchronize() { return device_->Synchronize(); }
void RecordingDevice::Abandon() { device_->Abandon(); }
DeviceCeilings RecordingDevice::MeasureCeilings() { return device_->MeasureCeilings(); }
std::unique_ptr<cuda::DeviceMeter> RecordingDevice::MakeMeter() { return device_->MakeMeter(); }

}  // namespace attention::bench
