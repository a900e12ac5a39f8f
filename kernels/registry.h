// The backends this binary was built with, fastest first. The single place that knows them all.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/api/attention_backend.h"

namespace attention {

struct BackendOptions {
  int num_threads = 0;         // CPU backends; 0: one per available core, or per CPU of `cpus`
  std::vector<int> cpus = {};  // "cpu": to run on, see CpuBackendOptions; empty: anywhere
  int cuda_device = 0;         // "cuda": ordinal of the GPU
};

// Those that every machine has. "cuda" comes from a library that is loaded when it is asked for.
std::vector<std::string_view> RegisteredBackends();

// NOT_FOUND lists the known names; UNAVAILABLE says why the device cannot be used.
absl::StatusOr<std::unique_ptr<AttentionBackend>> MakeBackend(std::string_view name,
                                                              const BackendOptions& options);

// A GPU that the process can see.
struct VisibleGpu {
  std::string name;
  absl::Status status;  // not OK: why it cannot be used
};

// By ordinal, at least one; or UNAVAILABLE says why there is none. Makes nothing on them.
absl::StatusOr<std::vector<VisibleGpu>> VisibleGpus();

// The GPUs beside those that the backend `used` computes on, as far as they can be told, and why
// they are not used. `names`: of the devices that it computes on.
std::vector<UnusedDevice> UnusedGpus(const absl::StatusOr<std::vector<VisibleGpu>>& gpus,
                                     std::string_view used, std::span<const std::string> names);

}  // namespace attention
