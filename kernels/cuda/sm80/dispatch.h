// From the sizes in a kernel's name to its type. `launch` is called with a null pointer of the
// kernel's type; the result is whether there is such a kernel.
#pragma once

#include "kernels/cuda/sm80/attend_float.h"
#include "kernels/cuda/sm80/attend_mma.h"
#include "kernels/cuda/sm80/probe.h"

namespace attention::cuda {

template <DType kType, DType kKvType, typename Launch>
bool DispatchMma(int head_dim, int tile_rows, const Launch& launch) {
  const bool is_narrow = tile_rows == 16;
  if (!is_narrow && tile_rows != 64) return false;
  const auto with_dim = [&](auto narrow, auto wide) {
    if (is_narrow) {
      launch(narrow);
    } else {
      launch(wide);
    }
    return true;
  };
  switch (head_dim) {
    case 64:
      return with_dim(static_cast<AttendMma<kType, kKvType, 64, 1>*>(nullptr),
                      static_cast<AttendMma<kType, kKvType, 64, 4>*>(nullptr));
    case 128:
      return with_dim(static_cast<AttendMma<kType, kKvType, 128, 1>*>(nullptr),
                      static_cast<AttendMma<kType, kKvType, 128, 4>*>(nullptr));
    case 256:
      return with_dim(static_cast<AttendMma<kType, kKvType, 256, 1>*>(nullptr),
                      static_cast<AttendMma<kType, kKvType, 256, 4>*>(nullptr));
    default:
      return false;
  }
}

template <template <int> class Kernel, typename Launch>
bool DispatchHeadDim(int head_dim, const Launch& launch) {
  switch (head_dim) {
    case 64:
      launch(static_cast<Kernel<64>*>(nullptr));
      return true;
    case 128:
      launch(static_cast<Kernel<128>*>(nullptr));
      return true;
    case 256:
      launch(static_cast<Kernel<256>*>(nullptr));
      return true;
    default:
      return false;
  }
}

}  // namespace attention::cuda
