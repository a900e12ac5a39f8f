// The backends this binary was built with, fastest first. The single place that knows them all.
#pragma once

#include <memory>
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

// The devices beside that of the backend `used`, as far as they can be told: the GPU, and why it is
// not used. Makes nothing on them.
std::vector<UnusedDevice> UnusedDevices(std::string_view used, const BackendOptions& options);

}  // namespace attention
