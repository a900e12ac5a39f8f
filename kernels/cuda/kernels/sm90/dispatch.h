// From the head dim in a kernel's name to its type, as generic/dispatch.h.
#pragma once

#include "kernels/cuda/kernels/common/attend_decode.h"
#include "kernels/cuda/kernels/sm90/attend_wgmma.h"
#include "kernels/cuda/kernels/sm90/decode_bulk_copies.h"

namespace attention::cuda {

template <DType kType, DType kKvType, typename Launch>
bool DispatchDecodeBulk(int head_dim, const Launch& launch) {
  switch (head_dim) {
    case 64:
      launch(
          static_cast<AttendDecode<DecodeSizes<kType, kKvType, 64>, DecodeBulkCopies>*>(nullptr));
      return true;
    case 128:
      launch(
          static_cast<AttendDecode<DecodeSizes<kType, kKvType, 128>, DecodeBulkCopies>*>(nullptr));
      return true;
    case 256:
      launch(
          static_cast<AttendDecode<DecodeSizes<kType, kKvType, 256>, DecodeBulkCopies>*>(nullptr));
      return true;
    default:
      return false;
  }
}

template <typename Launch>
bool DispatchDecodeBulk(DType dtype, DType kv_dtype, int head_dim, const Launch& launch) {
  constexpr DType kHalf = DType::kFloat16, kBFloat = DType::kBFloat16;
  if (dtype == kHalf) {
    return kv_dtype == kHalf && DispatchDecodeBulk<kHalf, kHalf>(head_dim, launch);
  }
  if (dtype != kBFloat) return false;
  switch (kv_dtype) {
    case DType::kBFloat16:
      return DispatchDecodeBulk<kBFloat, kBFloat>(head_dim, launch);
    case DType::kInt8:
      return DispatchDecodeBulk<kBFloat, DType::kInt8>(head_dim, launch);
    case DType::kFloat8E4M3:
      return DispatchDecodeBulk<kBFloat, DType::kFloat8E4M3>(head_dim, launch);
    default:
      return false;
  }
}

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
