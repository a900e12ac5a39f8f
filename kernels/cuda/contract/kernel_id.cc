#include "kernels/cuda/contract/kernel_id.h"

#include "absl/strings/str_cat.h"

namespace attention::cuda {
namespace {

std::string TypedName(const char* family, const KernelId& id) {
  return absl::StrCat(family, std::string(DTypeName(id.dtype)), "/",
                      std::string(DTypeName(id.kv_dtype)), "/dim", id.head_dim);
}

}  // namespace

std::string KernelIdName(const KernelId& id) {
  switch (id.family) {
    case KernelFamily::kAppend:
      return "append";
    case KernelFamily::kAttendWgmma:
      return absl::StrCat("wgmma/", std::string(DTypeName(id.dtype)), "/dim", id.head_dim);
    case KernelFamily::kAttendMma:
      return TypedName("mma/", id);
    case KernelFamily::kAttendDecode:
      return TypedName("decode/", id);
    case KernelFamily::kAttendDecodeBulk:
      return TypedName("decode-bulk/", id);
    case KernelFamily::kAttendFloat:
      return absl::StrCat("float/dim", id.head_dim);
    case KernelFamily::kRowTotals:
      return absl::StrCat("totals/dim", id.head_dim);
    case KernelFamily::kProbe:
      return absl::StrCat("probe/dim", id.head_dim);
  }
  return "unknown";
}

}  // namespace attention::cuda
