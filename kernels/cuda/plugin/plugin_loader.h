// Finds and loads libattention_cuda.so: beside the program, in ../lib from there, or where the
// system looks for libraries.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"
#include "kernels/cuda/device/device.h"

namespace attention::cuda {

struct PluginOptions {
  int device = 0;                   // ordinal
  bool has_managed_memory = false;  // pages that the host can read, for tests
  double launch_flops = 0;          // of CudaBackendOptions; 0: the default
  std::size_t part_bytes = 0;       // the same
};

// UNAVAILABLE says why there is none: no library, no driver, no device, a device too old.
// FAILED_PRECONDITION: the library is of another build. Thread-safe; the library stays loaded.
absl::StatusOr<std::unique_ptr<AttentionBackend>> LoadCudaBackend(const PluginOptions& options);

// A device's name, and whether it can be used; else, as LoadCudaBackend, why not.
struct CudaDeviceDescription {
  std::string name;
  absl::Status status;
};

// Those that the process can see, by ordinal; at least one, or the same errors. Cheap: makes no
// context on any device.
absl::StatusOr<std::vector<CudaDeviceDescription>> DescribeCudaDevices();

// The device without a backend, for benchmarks, or the same errors. `launch_flops` has no meaning.
absl::StatusOr<std::shared_ptr<Device>> OpenCudaDevice(const PluginOptions& options);

}  // namespace attention::cuda
