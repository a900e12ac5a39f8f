// As generic/decode_copies.h, by bulk copies: a slice of keys, one of values, and their scales are
// dense in a page. Head dims of the kernel's size alone, so that rows of pages and buffers are
// alike.
//
// The copies into a buffer end in its mbarrier, which nobody but the warp uses.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/kernels/common/decode_sizes.h"
#include "kernels/cuda/kernels/intrinsics/hopper.h"

namespace attention::cuda {

template <typename Sizes>
struct DecodeBulkCopies {
  using Buffer = StageBuffer<Sizes>;
  static constexpr bool kHasExactDims = true;
  static constexpr int kWordBytes =
      Sizes::kWarps * Sizes::kStages * static_cast<int>(sizeof(std::uint64_t));

  std::uint64_t* full;
  std::uint32_t parities = 0;  // bit i: of buffer i

  ATTENTION_DEVICE DecodeBulkCopies(char* words, int warp)
      : full(reinterpret_cast<std::uint64_t*>(words) + warp * Sizes::kStages) {
    if (LaneIndex() == 0) {
      for (int i = 0; i < Sizes::kStages; ++i) InitBarrier(full + i, 1);
      FenceBarrierInit();
    }
    SyncWarp();
  }

  ATTENTION_DEVICE void Send(const DeviceTask& task, const DecodeSource& source, int owner,
                             bool is_wanted, Buffer to, int stage) const {
    if (!is_wanted || LaneIndex() != owner) return;
    const PageLayout& layout = task.layout;
    std::uint64_t* barrier = full + stage;
    ArriveExpectingBytes(barrier, Sizes::kBufferBytes);
    const std::int64_t row = static_cast<std::int64_t>(source.token) * Sizes::kKvRowBytes;
    CopyBulk(to.keys(), source.head + row, Sizes::kTensorBytes, barrier);
    CopyBulk(to.values(), source.head + layout.value_offset + row, Sizes::kTensorBytes, barrier);
    if constexpr (Sizes::kHasScales) {
      CopyBulk(to.key_scales(), source.head + layout.key_scale_offset + source.token * 4,
               Sizes::kScaleBytes, barrier);
      CopyBulk(to.value_scales(), source.head + layout.value_scale_offset + source.token * 4,
               Sizes::kScaleBytes, barrier);
    }
  }

  // By all lanes, which may see the barrier complete one after the other, and read matrices
  // together next.
  ATTENTION_DEVICE void Wait(int stage) {
    WaitForBarrier(full + stage, parities >> stage & 1u);
    parities ^= 1u << stage;
    SyncWarp();
  }

  static ATTENTION_DEVICE void JoinWrites() { FenceAsyncProxy(); }
};

}  // namespace attention::cuda
