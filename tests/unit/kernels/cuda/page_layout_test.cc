#include "kernels/cuda/page_layout.h"

#include <gmock/gmock.h>

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

TEST(PageLayoutTest, Int8RowsHaveAScaleEach) {
  const PageLayout layout = MakePageLayout({2, 128, 64, DType::kInt8}, 16);
  EXPECT_EQ(layout.key_scale_offset, 16 * (128 + 64));
  EXPECT_EQ(layout.value_scale_offset, layout.key_scale_offset + 16 * 4);
  EXPECT_EQ(layout.head_bytes, layout.value_scale_offset + 16 * 4);
}

// Copies are of 16 bytes.
TEST(PageLayoutTest, EveryRowIsAlignedForEveryTypeAndDim) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
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
