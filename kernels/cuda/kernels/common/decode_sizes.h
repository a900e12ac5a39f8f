// Sizes of AttendDecode, and how it lays out shared memory; README.md derives them.
//
//   queries [16][D + 8] | of each warp kStages buffers | what the copies need (decode_copies.h)
//
//   a buffer, of a slice of keys: keys [16][D] | values [16][D]
//     | with row scales: scales of keys [16], of values [16]
//
// Rows of queries are 16 bytes apart, so that a piece of eight of them lies in different banks.
#pragma once

#include "kernels/cuda/contract/page_layout.h"
#include "kernels/cuda/kernels/intrinsics/simt.h"

namespace attention::cuda {

template <DType kElementType, DType kStoredType, int kHeadDimension>
struct DecodeSizes {
  static constexpr DType kType = kElementType;
  static constexpr DType kKvType = kStoredType;
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr bool kHasScales = HasRowScales(kKvType);

  static constexpr int kTileRows = 16;
  static constexpr int kSliceKeys = 16;  // of a warp
  static constexpr int kWarps = kHeadDim <= 128 ? 4 : 2;
  static constexpr int kTileKeys = kWarps * kSliceKeys;
  static constexpr int kThreads = 32 * kWarps;
  // One is computed with while another comes. A third buffer lets two blocks share a multiprocessor
  // where two let three: 3 to 28 % slower (H200, 8 to 64 sequences).
  static constexpr int kStages = 2;

  static constexpr int kRowBytes = 2 * kHeadDim;
  static constexpr int kQueryStride = kRowBytes + kPieceBytes;
  static constexpr int kQueryBytes = kTileRows * kQueryStride;
  static constexpr int kKvRowBytes = static_cast<int>(DTypeBytes(kKvType)) * kHeadDim;
  static constexpr int kTensorBytes = kSliceKeys * kKvRowBytes;
  static constexpr int kScaleBytes = kHasScales ? kSliceKeys * 4 : 0;
  static constexpr int kBufferBytes = 2 * (kTensorBytes + kScaleBytes);
  static constexpr int kWordsAt = kQueryBytes + kWarps * kStages * kBufferBytes;
};

// Where 16 tokens of an item's head lie, all in one page; null where no row sees any.
struct DecodeSource {
  const char* head = nullptr;
  int token = 0;  // the first one, within the page
};

template <typename Sizes>
struct StageBuffer {
  char* memory;

  ATTENTION_DEVICE char* keys() const { return memory; }
  ATTENTION_DEVICE char* values() const { return memory + Sizes::kTensorBytes; }
  ATTENTION_DEVICE float* key_scales() const {
    return reinterpret_cast<float*>(memory + 2 * Sizes::kTensorBytes);
  }
  ATTENTION_DEVICE float* value_scales() const { return key_scales() + Sizes::kSliceKeys; }

  // 16 bytes of a row of keys or values, as pages have them where rows fill lines.
  static ATTENTION_DEVICE int PieceAt(int row, int piece) {
    if constexpr (Sizes::kKvRowBytes % kLineBytes == 0) {
      return SwizzledPieceOffset(Sizes::kKvRowBytes, row, piece);
    }
    return row * Sizes::kKvRowBytes + piece * kPieceBytes;
  }
};

}  // namespace attention::cuda
