// Names of the kernels, for host code that chooses and launches them.
#pragma once

#include <compare>
#include <string>

#include "kernels/api/dtype.h"

namespace attention::cuda {

enum class KernelFamily {
  kAppend,
  kAttendWgmma,
  kAttendMma,
  kAttendDecode,
  kAttendDecodeBulk,  // the same by bulk copies
  kAttendFloat,
  kRowTotals,
  kProbe
};

// The compiled kernels: kAttendMma, kAttendDecode and kAttendDecodeBulk for head dims 64, 128 and
// 256 and types (float16, float16), (bfloat16, bfloat16), (bfloat16, int8), (bfloat16,
// float8_e4m3), with tiles of 64, 16 and 16 rows; kAttendWgmma for the head dims, tiles of 128
// rows, and the first two of these types; kAttendFloat, kRowTotals and kProbe for the head dims.
struct KernelId {
  KernelFamily family = KernelFamily::kAppend;
  // The type of queries and outputs. kAppend, kAttendFloat, kRowTotals and kProbe have neither.
  DType dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
  int head_dim = 0;   // the compiled one, at least that of the task
  int tile_rows = 0;  // 0: kAttendFloat's

  auto operator<=>(const KernelId&) const = default;
};

// Each block takes items until none is left.
inline bool IsPersistent(const KernelId& id) { return id.family == KernelFamily::kAttendWgmma; }

// "decode/bfloat16/int8/dim128", "wgmma/bfloat16/dim128", "float/dim64", ...
std::string KernelIdName(const KernelId& id);

}  // namespace attention::cuda
