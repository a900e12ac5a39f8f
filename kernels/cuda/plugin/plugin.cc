#include "kernels/cuda/plugin/plugin.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/plugin/cuda_device.h"

namespace attention::cuda {
namespace {

void CopyText(const std::string& text, char* to, std::size_t bytes) {
  if (to == nullptr || bytes == 0) return;
  std::snprintf(to, bytes, "%.*s", static_cast<int>(text.size()), text.data());
}

absl::Status Describe(PluginRequest* request) {
  request->num_devices = CudaDeviceCount();
  auto name = CudaDeviceName(request->device);
  if (!name.ok()) return name.status();
  CopyText(*name, request->device_name, request->name_bytes);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Device>> DeviceOf(const PluginRequest& request) {
  return MakeCudaDevice(
      {.ordinal = request.device, .has_managed_memory = request.has_managed_memory});
}

absl::Status Open(PluginRequest* request) {
  auto device = DeviceOf(*request);
  if (!device.ok()) return device.status();
  *request->opened = std::move(*device);
  return absl::OkStatus();
}

absl::Status Make(PluginRequest* request) {
  auto device = DeviceOf(*request);
  if (!device.ok()) return device.status();
  // A second order of work: weights are packed while the first one computes.
  auto packing_device = MakeCudaDevice({.ordinal = request->device});
  if (!packing_device.ok()) return packing_device.status();
  CudaBackendOptions options;
  options.packing_device = *std::move(packing_device);
  if (request->launch_flops > 0) options.launch_flops = request->launch_flops;
  if (request->part_bytes > 0) options.part_bytes = request->part_bytes;
  request->backend = MakeCudaBackend(std::move(*device), options).release();
  return absl::OkStatus();
}

// Exceptions end at the boundary.
int Answer(PluginRequest* request, absl::Status (*call)(PluginRequest*)) {
  if (std::strcmp(request->build, kPluginBuild) != 0 ||
      request->request_bytes != sizeof(PluginRequest)) {
    return kPluginOtherBuild;
  }
  absl::Status status;
  try {
    status = call(request);
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  CopyText(std::string(status.message()), request->message, request->message_bytes);
  return static_cast<int>(status.code());
}

}  // namespace
}  // namespace attention::cuda

extern "C" {

__attribute__((visibility("default"))) int attention_cuda_make_backend(
    attention::cuda::PluginRequest* request) {
  return attention::cuda::Answer(request, attention::cuda::Make);
}

__attribute__((visibility("default"))) int attention_cuda_open_device(
    attention::cuda::PluginRequest* request) {
  return attention::cuda::Answer(request, attention::cuda::Open);
}

__attribute__((visibility("default"))) int attention_cuda_describe_device(
    attention::cuda::PluginRequest* request) {
  return attention::cuda::Answer(request, attention::cuda::Describe);
}

}  // extern "C"
