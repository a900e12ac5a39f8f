// Matrices in shared memory as the instructions of a warpgroup name them.
//
// A tile lies as in a page (page_layout.h): eight rows together, line of 128 bytes by line,
//
//   [rows / 8][lines][8 rows][128 bytes], swizzled
//
// which is both canonical layouts of the 128-byte swizzle at once (PTX ISA, "Asynchronous Warpgroup
// Level Matrix Shared Memory Layout", "Strides"):
//
// - K-major, when the product runs over the elements of a row: queries and keys. Groups of eight
// rows
//   are the stride offset apart. A step of 16 elements is 32 bytes of a line: the start moves
//   within the first row of the pattern, as the swizzle goes by bits of the address.
// - MN-major, when it runs over rows: values. 64 columns fill a line and the next 64 are the
// leading
//   offset apart; 8 rows fill a pattern and the next 8 are the stride offset apart. A step of 16
//   rows is two groups of rows.
//
// The tile begins at a multiple of 1024 bytes, where the swizzle repeats, so the descriptors' base
// offset is 0.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/page_layout.h"
#include "kernels/cuda/kernels/intrinsics/hopper.h"

namespace attention::cuda {

// PTX ISA, "Matrix Descriptor Format": addresses and offsets without their last four bits.
// Addresses have 18 bits: what is above them names a block of a cluster.
inline constexpr int kDescriptorShift = 4;
inline constexpr std::uint32_t kDescriptorAddressMask = (1u << 18) - 1;
inline constexpr std::uint64_t kDescriptorSwizzle128 = std::uint64_t{1} << 62;

ATTENTION_HOST_DEVICE constexpr std::uint64_t MatrixDescriptor(std::uint32_t address,
                                                               int leading_offset,
                                                               int stride_offset) {
  return (address & kDescriptorAddressMask) >> kDescriptorShift |
         static_cast<std::uint64_t>(leading_offset >> kDescriptorShift) << 16 |
         static_cast<std::uint64_t>(stride_offset >> kDescriptorShift) << 32 |
         kDescriptorSwizzle128;
}

// The descriptor of a matrix `bytes` further on.
ATTENTION_HOST_DEVICE constexpr std::uint64_t Advanced(std::uint64_t descriptor, int bytes) {
  return descriptor + static_cast<std::uint64_t>(bytes >> kDescriptorShift);
}

// A tile of rows of kRowBytes.
template <int kRowBytes>
struct TileOperand {
  static_assert(kRowBytes % kLineBytes == 0);
  static constexpr int kGroupBytes = kSwizzleTokens * kRowBytes;  // of eight rows
  static constexpr int kStep = 16;                                // of the instructions

  // Rows from `tile` on, K-major. The leading offset has no meaning; 1 is what others write.
  static ATTENTION_DEVICE std::uint64_t KMajor(std::uint32_t tile) {
    return MatrixDescriptor(tile, 1 << kDescriptorShift, kGroupBytes);
  }
  // The start of 16 elements of each row.
  static ATTENTION_HOST_DEVICE constexpr int KMajorStep(int step) {
    constexpr int kStepBytes = kStep * 2;
    constexpr int kLineSteps = kLineBytes / kStepBytes;
    return step / kLineSteps * kSwizzleBytes + step % kLineSteps * kStepBytes;
  }

  // Columns from `column` on, a multiple of 64, MN-major.
  static ATTENTION_DEVICE std::uint64_t MnMajor(std::uint32_t tile, int column) {
    constexpr int kLineColumns = kLineBytes / 2;
    return MatrixDescriptor(tile + column / kLineColumns * kSwizzleBytes, kSwizzleBytes,
                            kGroupBytes);
  }
  // The start of 16 rows.
  static ATTENTION_HOST_DEVICE constexpr int MnMajorStep(int step) {
    return step * (kStep / kSwizzleTokens) * kGroupBytes;
  }
};

}  // namespace attention::cuda
