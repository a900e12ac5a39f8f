// Names of the kernels, for host code that chooses and launches them.
#pragma once

#include <compare>
#include <string>

#include "kernels/api/dtype.h"

namespace attention::cuda {

enum class KernelFamily { kAppend, kAttendWgmma, kAttendMma, kAttendFloat, kProbe };

// What is compiled: kAttendMma for head dims 64, 128 and 256, tiles of 16 and 64 rows, and types
// (float16, float16), (bfloat16, bfloat16), (bfloat16, int8), (bfloat16, float8_e4m3); kAttendWgmma
// for the head dims, tiles of 128 rows, and the first two of these types; kAttendFloat and kProbe
// for the head dims.
struct KernelId {
  KernelFamily family = KernelFamily::kAppend;
  DType dtype = DType::kFloat32;     // of queries and outputs; kAttendWgmma, kAttendMma
  DType kv_dtype = DType::kFloat32;  // the same
  int head_dim = 0;                  // the compiled one, at least that of the task
  int tile_rows = 0;                 // the same

  auto operator<=>(const KernelId&) const = default;
};

// Each block takes items until none is left.
inline bool IsPersistent(const KernelId& id) { return id.family == KernelFamily::kAttendWgmma; }

// "mma/bfloat16/int8/dim128/rows16", "wgmma/bfloat16/dim128", "float/dim64", ...
std::string KernelIdName(const KernelId& id);

}  // namespace attention::cuda
