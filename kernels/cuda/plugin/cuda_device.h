// A Device that is a GPU.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/device/device.h"

namespace attention::cuda {

struct CudaDeviceOptions {
  int ordinal = 0;
  bool has_managed_memory = false;  // pages that the host can read, for tests
};

// In the device's present context, or in another one if that was lost. UNAVAILABLE says why there
// is none: no driver or one too old, no device of that ordinal, a compute capability before 8.0, a
// device that does not compute, or that the driver does not give back after a fault.
absl::StatusOr<std::shared_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options);

// Model, ordinal and place on the bus, or the same errors. Makes no context.
absl::StatusOr<std::string> CudaDeviceName(int ordinal);

// How many the process can see; 0 without a driver.
int CudaDeviceCount();

}  // namespace attention::cuda
