// How AttendDecode brings slices into shared memory: 16 bytes at a time. Head dims of every size
// that the kernel's holds; what is beyond them becomes zero.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/device_types.h"
#include "kernels/cuda/kernels/common/decode_sizes.h"
#include "kernels/cuda/kernels/intrinsics/simt.h"

namespace attention::cuda {

template <typename Sizes>
struct DecodeCopies {
  using Buffer = StageBuffer<Sizes>;
  static constexpr bool kHasExactDims = false;
  static constexpr int kWordBytes = 0;

  ATTENTION_DEVICE DecodeCopies(char* /*words*/, int /*warp*/) {}

  ATTENTION_DEVICE static void SendTensor(const char* from, int row_bytes, bool is_swizzled,
                                          char* to) {
    constexpr int kPieces = Sizes::kKvRowBytes / kPieceBytes;
#pragma unroll
    for (int i = LaneIndex(); i < Sizes::kSliceKeys * kPieces; i += 32) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool is_wanted = piece * kPieceBytes < row_bytes;
      const int offset = is_swizzled ? SwizzledPieceOffset(row_bytes, row, piece)
                                     : row * row_bytes + piece * kPieceBytes;
      CopyAsync16(to + Buffer::PieceAt(row, piece), is_wanted ? from + offset : from, is_wanted);
    }
  }

  ATTENTION_DEVICE static void SendSlice(const PageLayout& layout, const char* head, int token,
                                         Buffer to) {
    SendTensor(head + static_cast<std::int64_t>(token) * layout.key_row_bytes, layout.key_row_bytes,
               layout.has_swizzled_keys, to.keys());
    SendTensor(
        head + layout.value_offset + static_cast<std::int64_t>(token) * layout.value_row_bytes,
        layout.value_row_bytes, layout.has_swizzled_values, to.values());
    if constexpr (Sizes::kHasScales) {
      constexpr int kPieces = Sizes::kScaleBytes / kPieceBytes;
      const int lane = LaneIndex();
      if (lane >= 2 * kPieces) return;
      const std::int64_t from =
          lane < kPieces ? layout.key_scale_offset : layout.value_scale_offset;
      CopyAsync16(reinterpret_cast<char*>(to.key_scales()) + lane * kPieceBytes,
                  head + from + token * 4 + lane % kPieces * kPieceBytes, true);
    }
  }

  // `owner` is the lane whose `source` it is. Called for every slice, in order, also for those of
  // which no row sees a key.
  ATTENTION_DEVICE void Send(const DeviceTask& task, const DecodeSource& source, int owner,
                             bool is_wanted, Buffer to, int /*stage*/) const {
    if (is_wanted) {
      const char* head = ShuffleFrom(source.head, owner);
      const std::uint32_t token = ShuffleFrom(static_cast<std::uint32_t>(source.token), owner);
      SendSlice(task.layout, head, static_cast<int>(token), to);
    }
    CommitCopies();
  }

  // For the oldest slice that was sent and not waited for, by all lanes.
  ATTENTION_DEVICE void Wait(int /*stage*/) {
    WaitCopies<Sizes::kStages - 1>();
    SyncWarp();
  }

  // After lanes have written into a buffer, before another slice is sent there.
  static ATTENTION_DEVICE void JoinWrites() {}
};

}  // namespace attention::cuda
