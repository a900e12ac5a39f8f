#include "kernels/registry.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/plugin/plugin_loader.h"
#include "kernels/reference/reference_backend.h"

namespace attention {

std::vector<std::string_view> RegisteredBackends() { return {"cpu", "reference"}; }

absl::StatusOr<std::unique_ptr<AttentionBackend>> MakeBackend(std::string_view name,
                                                              const BackendOptions& options) {
  if (name == "cpu") {
    return cpu::MakeCpuBackend({.num_threads = options.num_threads, .cpus = options.cpus});
  }
  if (name == "reference") return reference::MakeReferenceBackend();
  if (name == "cuda") return cuda::LoadCudaBackend({.device = options.cuda_device});
  std::string names;
  for (std::string_view known : RegisteredBackends()) {
    absl::StrAppend(&names, std::string(known), ", ");
  }
  names += "cuda";
  return absl::NotFoundError(
      absl::StrCat("no backend is named \"", std::string(name), "\", expected one of: ", names));
}

absl::StatusOr<std::vector<VisibleGpu>> VisibleGpus() {
  auto devices = cuda::DescribeCudaDevices();
  if (!devices.ok()) return devices.status();
  std::vector<VisibleGpu> gpus;
  for (cuda::CudaDeviceDescription& device : *devices) {
    gpus.push_back({std::move(device.name), std::move(device.status)});
  }
  return gpus;
}

std::vector<UnusedDevice> UnusedGpus(const absl::StatusOr<std::vector<VisibleGpu>>& gpus,
                                     std::string_view used, std::span<const std::string> names) {
  if (!gpus.ok()) {
    if (used == "cuda") return {};
    return {{"cuda", "", std::string(gpus.status().message())}};
  }
  std::vector<UnusedDevice> unused;
  for (const auto& [name, status] : *gpus) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    std::string reason(status.message());
    if (status.ok() && used == "cuda") reason = "it is not among the chosen ones by configuration";
    if (status.ok() && used != "cuda") {
      reason = absl::StrCat("the backend is ", std::string(used), " by configuration");
    }
    unused.push_back({"cuda", name, std::move(reason)});
  }
  return unused;
}

}  // namespace attention
