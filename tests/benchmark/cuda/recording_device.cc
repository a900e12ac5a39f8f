#include "tests/benchmark/cuda/recording_device.h"

#include <utility>

namespace attention::bench {

using cuda::Device;

RecordingDevice::RecordingDevice(std::shared_ptr<Device> device) : device_(std::move(device)) {}

void RecordingDevice::Start() {
  commands_.clear();
  is_recording_ = true;
}

void RecordingDevice::Stop() { is_recording_ = false; }

absl::Status RecordingDevice::Replay() {
  for (const Command& command : commands_) {
    if (absl::Status status = command(*device_); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RecordingDevice::Do(const Command& command) {
  if (is_recording_) commands_.push_back(command);
  return command(*device_);
}

const cuda::DeviceProperties& RecordingDevice::properties() const { return device_->properties(); }
MemoryAllocator& RecordingDevice::memory() { return device_->memory(); }
MemoryAllocator& RecordingDevice::host_memory() { return device_->host_memory(); }

absl::Status RecordingDevice::CopyToDevice(void* device, const void* host, std::size_t bytes) {
  return device_->CopyToDevice(device, host, bytes);
}
absl::Status RecordingDevice::CopyToHost(void* host, const void* device, std::size_t bytes) {
  return device_->CopyToHost(host, device, bytes);
}

absl::Status RecordingDevice::Zero(void* device, std::size_t bytes) {
  return Do([=](Device& to) { return to.Zero(device, bytes); });
}
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

absl::Status RecordingDevice::Synchronize() { return device_->Synchronize(); }
DeviceCeilings RecordingDevice::MeasureCeilings() { return device_->MeasureCeilings(); }
std::unique_ptr<cuda::DeviceMeter> RecordingDevice::MakeMeter() { return device_->MakeMeter(); }

}  // namespace attention::bench
