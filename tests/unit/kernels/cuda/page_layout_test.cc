#include "kernels/cuda/contract/page_layout.h"

#include <gmock/gmock.h>

#include <set>

namespace attention::cuda {
namespace {

TEST(PageLayoutTest, EveryPartOfAHeadFollowsTheOneBefore) {
  const PageLayout layout = MakePageLayout({3, 40, 23, DType::kBFloat16}, 48);
  EXPECT_EQ(layout.key_row_bytes, 48 * 2);
  EXPECT_EQ(layout.value_row_bytes, 32 * 2);
  EXPECT_EQ(layout.value_offset, 48 * 96);
  EXPECT_EQ(layout.head_bytes, 48 * (96 + 64));
  EXPECT_EQ(layout.page_bytes, 3 * layout.head_bytes);
}

TEST(PageLayoutTest, RowsOfOneByteElementsHaveAScaleEach) {
  for (DType dtype : {DType::kInt8, DType::kFloat8E4M3}) {
    const PageLayout layout = MakePageLayout({2, 128, 64, dtype}, 16);
    EXPECT_EQ(layout.key_scale_offset, 16 * (128 + 64));
    EXPECT_EQ(layout.value_scale_offset, layout.key_scale_offset + 16 * 4);
    EXPECT_EQ(layout.head_bytes, layout.value_scale_offset + 16 * 4);
  }
}

// As the matrix instructions of compute capability 9.0 read them, and others without conflicts.
TEST(PageLayoutTest, RowsOfOneOrTwoByteElementsThatFillLinesAreSwizzledByEightTokens) {
  const PageLayout layout = MakePageLayout({2, 128, 40, DType::kBFloat16}, 16);
  EXPECT_TRUE(layout.has_swizzled_keys);
  EXPECT_FALSE(layout.has_swizzled_values);
  EXPECT_EQ(layout.key_piece(0, 3), 3 * 16);
  EXPECT_EQ(layout.key_piece(5, 3), 5 * 128 + (3 ^ 5) * 16);
  EXPECT_EQ(layout.key_piece(5, 8 + 3), 1024 + 5 * 128 + (3 ^ 5) * 16);
  EXPECT_EQ(layout.key_piece(8, 0), 8 * 256);
  EXPECT_EQ(layout.value_piece(5, 3), layout.value_offset + 5 * 48 * 2 + 3 * 16);
  EXPECT_FALSE(MakePageLayout({2, 128, 128, DType::kFloat32}, 16).has_swizzled_keys);
  const PageLayout quantized = MakePageLayout({2, 128, 64, DType::kInt8}, 16);
  EXPECT_EQ(quantized.key_piece(5, 3), 5 * 128 + (3 ^ 5) * 16);
  EXPECT_FALSE(quantized.has_swizzled_values);
}

TEST(PageLayoutTest, EveryPieceHasAPlaceOfItsOwn) {
  for (int dim : {40, 64, 192, 256}) {
    const PageLayout layout = MakePageLayout({1, dim, dim, DType::kFloat16}, 48);
    std::set<std::int64_t> places;
    for (int token = 0; token < layout.page_size; ++token) {
      for (int piece = 0; piece < layout.key_row_bytes / 16; ++piece) {
        places.insert(layout.key_piece(token, piece));
        places.insert(layout.value_piece(token, piece));
      }
    }
    EXPECT_EQ(static_cast<std::int64_t>(places.size()) * 16, layout.head_bytes);
    EXPECT_EQ(*places.rbegin(), layout.head_bytes - 16);
  }
}

// Copies are of 16 bytes.
TEST(PageLayoutTest, EveryRowIsAlignedForEveryTypeAndDim) {
  for (DType dtype :
       {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8, DType::kFloat8E4M3}) {
    for (int dim = 1; dim <= 256; ++dim) {
      const PageLayout layout = MakePageLayout({2, dim, 257 - dim, dtype}, 16);
      for (std::int64_t bytes : {static_cast<std::int64_t>(layout.key_row_bytes),
                                 static_cast<std::int64_t>(layout.value_row_bytes),
                                 layout.value_offset, layout.key_scale_offset, layout.head_bytes}) {
        ASSERT_EQ(bytes % 16, 0);
      }
    }
  }
}

}  // namespace
}  // namespace attention::cuda
