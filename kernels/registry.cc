#include "kernels/registry.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/plugin_loader.h"
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

std::vector<UnusedDevice> UnusedDevices(std::string_view used, const BackendOptions& options) {
  if (used == "cuda") return {};
  const absl::StatusOr<std::string> device = cuda::DescribeCudaDevice(options.cuda_device);
  if (!device.ok()) return {{"cuda", "", std::string(device.status().message())}};
  return {
      {"cuda", *device, absl::StrCat("the backend is ", std::string(used), " by configuration")}};
}

}  // namespace attention
