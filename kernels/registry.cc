#include "kernels/registry.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"

namespace attention {

std::vector<std::string_view> RegisteredBackends() { return {"cpu", "reference"}; }

absl::StatusOr<std::unique_ptr<AttentionBackend>> MakeBackend(std::string_view name,
                                                              const BackendOptions& options) {
  if (name == "cpu") {
    return cpu::MakeCpuBackend({.num_threads = options.num_threads, .cpus = options.cpus});
  }
  if (name == "reference") return reference::MakeReferenceBackend();
  std::string names;
  for (std::string_view known : RegisteredBackends()) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(known));
  }
  return absl::NotFoundError(
      absl::StrCat("no backend is named \"", std::string(name), "\", expected one of: ", names));
}

}  // namespace attention
