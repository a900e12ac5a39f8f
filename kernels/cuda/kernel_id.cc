#include "kernels/cuda/kernel_id.h"

#include "absl/strings/str_cat.h"

namespace attention::cuda {

std::string KernelIdName(const KernelId& id) {
  switch (id.family) {
    case KernelFamily::kAppend:
      return "append";
    case KernelFamily::kAttendWgmma:
      return absl::StrCat("wgmma/", std::string(DTypeName(id.dtype)), "/dim", id.head_dim);
    case KernelFamily::kAttendMma:
      return absl::StrCat("mma/", std::string(DTypeName(id.dtype)), "/",
                          std::string(DTypeName(id.kv_dtype)), "/dim", id.head_dim, "/rows",
                          id.tile_rows);
    case KernelFamily::kAttendFloat:
      return absl::StrCat("float/dim", id.head_dim);
    case KernelFamily::kProbe:
      return absl::StrCat("probe/dim", id.head_dim);
  }
  return "unknown";
}

}  // namespace attention::cuda
