#include "kernels/cuda/plugin/plugin_loader.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cuda/plugin/plugin.h"

namespace attention::cuda {
namespace {

// Paths to try; the last leaves the search to the system.
std::vector<std::string> Candidates() {
  std::vector<std::string> paths;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const std::filesystem::path folder = program.parent_path();
    // Tests lie one folder deeper than programs.
    for (const auto& place : {folder, folder / "../lib", folder / "../../lib"}) {
      if (std::filesystem::exists(place / kPluginLibrary, error)) {
        paths.push_back((place / kPluginLibrary).lexically_normal());
      }
    }
  }
  paths.emplace_back(kPluginLibrary);
  return paths;
}

absl::StatusOr<void*> OpenLibrary() {
  std::vector<std::string> errors;
  for (const std::string& path : Candidates()) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return library;
    errors.emplace_back(dlerror());
  }
  return absl::UnavailableError(
      absl::StrCat("the CUDA library cannot be loaded: ", absl::StrJoin(errors, "; ")));
}

absl::Status Call(const char* function, PluginRequest* request) {
  static const auto* library = new absl::StatusOr<void*>(OpenLibrary());
  if (!library->ok()) return library->status();
  auto* call = reinterpret_cast<PluginFunction*>(dlsym(**library, function));
  if (call == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(kPluginLibrary, " exports no ", function, ": it is of another build"));
  }
  char message[1024] = "";
  request->build = kPluginBuild;
  request->request_bytes = sizeof(PluginRequest);
  request->message = message;
  request->message_bytes = sizeof(message);
  const int code = call(request);
  if (code == kPluginOtherBuild) {
    return absl::FailedPreconditionError(
        absl::StrCat(kPluginLibrary, " is of another build, expected ", kPluginBuild));
  }
  return absl::Status(static_cast<absl::StatusCode>(code), message);
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionBackend>> LoadCudaBackend(const PluginOptions& options) {
  PluginRequest request{.device = options.device,
                        .has_managed_memory = options.has_managed_memory,
                        .launch_flops = options.launch_flops,
                        .part_bytes = options.part_bytes};
  if (absl::Status status = Call(kPluginMake, &request); !status.ok()) return status;
  return std::unique_ptr<AttentionBackend>(request.backend);
}

absl::StatusOr<std::vector<CudaDeviceDescription>> DescribeCudaDevices() {
  std::vector<CudaDeviceDescription> devices;
  int num_devices = 1;
  for (int device = 0; device < num_devices; ++device) {
    char name[256] = "";
    PluginRequest request{.device = device, .device_name = name, .name_bytes = sizeof(name)};
    absl::Status status = Call(kPluginDescribe, &request);
    num_devices = request.num_devices;
    if (num_devices == 0) return status;
    devices.push_back({name, std::move(status)});
  }
  return devices;
}

absl::StatusOr<std::shared_ptr<Device>> OpenCudaDevice(const PluginOptions& options) {
  std::shared_ptr<Device> device;
  PluginRequest request{.device = options.device,
                        .has_managed_memory = options.has_managed_memory,
                        .opened = &device};
  if (absl::Status status = Call(kPluginOpen, &request); !status.ok()) return status;
  return device;
}

}  // namespace attention::cuda
