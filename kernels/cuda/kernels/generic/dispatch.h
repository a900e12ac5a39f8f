// From the sizes in a kernel's name to its type. `launch` is called with a null pointer of the
// kernel's type; the result is whether there is such a kernel.
#pragma once

#include <type_traits>

#include "kernels/cuda/kernels/common/attend_decode.h"
#include "kernels/cuda/kernels/generic/attend_float.h"
#include "kernels/cuda/kernels/generic/attend_mma.h"
#include "kernels/cuda/kernels/generic/decode_copies.h"
#include "kernels/cuda/kernels/generic/probe.h"
#include "kernels/cuda/kernels/generic/row_totals.h"

namespace attention::cuda {

template <DType kType, DType kKvType, typename Launch>
bool DispatchMma(int head_dim, int tile_rows, const Launch& launch) {
  const auto with_dim = [&]<int kDim>(std::integral_constant<int, kDim>) {
    using Decode = AttendDecode<DecodeSizes<kType, kKvType, kDim>, DecodeCopies>;
    if (tile_rows == Decode::Sizes::kTileRows) {
      launch(static_cast<Decode*>(nullptr));
    } else {
      launch(static_cast<AttendMma<kType, kKvType, kDim>*>(nullptr));
    }
    return true;
  };
  switch (head_dim) {
    case 64:
      return with_dim(std::integral_constant<int, 64>{});
    case 128:
      return with_dim(std::integral_constant<int, 128>{});
    case 256:
      return with_dim(std::integral_constant<int, 256>{});
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
