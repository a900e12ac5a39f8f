// From the head dim in a kernel's name to its type, as sm80/dispatch.h.
#pragma once

#include "kernels/cuda/sm90/attend_wgmma.h"

namespace attention::cuda {

template <DType kType, typename Launch>
bool DispatchWgmma(int head_dim, const Launch& launch) {
  switch (head_dim) {
    case 64:
      launch(static_cast<AttendWgmma<kType, 64>*>(nullptr));
      return true;
    case 128:
      launch(static_cast<AttendWgmma<kType, 128>*>(nullptr));
      return true;
    case 256:
      launch(static_cast<AttendWgmma<kType, 256>*>(nullptr));
      return true;
    default:
      return false;
  }
}

}  // namespace attention::cuda
