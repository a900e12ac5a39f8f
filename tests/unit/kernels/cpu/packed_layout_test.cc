#include "kernels/cpu/packed_layout.h"

#include <gmock/gmock.h>

#include <cstring>
#include <vector>

#include "hwy/highway.h"
#include "kernels/cpu/attention_kernel.h"

namespace attention::cpu {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

TEST(PackedLayoutTest, BlocksAreWholeCacheLinesAndDoNotOverlap) {
  for (DType dtype : kDTypes) {
    for (int dim_qk : {1, 3, 64, 129}) {
      const PackedLayout layout = MakePackedLayout({3, dim_qk, 21, dtype}, 48);
      EXPECT_EQ(layout.key_block_bytes % 64, 0u);
      EXPECT_EQ(layout.value_block_bytes % 64, 0u);
      EXPECT_GE(layout.key_block_bytes, dim_qk * 16 * DTypeBytes(dtype));
      EXPECT_EQ(layout.value_offset(0, 0), layout.key_offset(0, 3));
      EXPECT_EQ(layout.key_offset(1, 0), layout.value_offset(0, 3));
      EXPECT_EQ(layout.page_bytes, layout.key_offset(3, 0));
    }
  }
}

TEST(PackedLayoutTest, ALatentPageHoldsKeysAlone) {
  for (DType dtype : kDTypes) {
    const PackedLayout layout = MakePackedLayout({3, 576, 512, dtype, true}, 48);
    EXPECT_EQ(layout.key_offset(1, 0), layout.key_offset(0, 3));
    EXPECT_EQ(layout.page_bytes, 3 * 48 * 576 * DTypeBytes(dtype));
  }
}

TEST(PackedLayoutTest, EveryElementHasAPlaceOfItsOwn) {
  for (bool is_paired : {false, true}) {
    std::vector<int> uses(16 * 16, 0);
    for (int token = 0; token < 16; ++token) {
      for (int channel = 0; channel < 16; ++channel)
        ++uses[ValueIndex(is_paired, 16, token, channel)];
    }
    EXPECT_THAT(uses, ::testing::Each(1));
    uses.assign(10 * 16, 0);
    for (int token = 0; token < 16; ++token) {
      for (int dim = 0; dim < 10; ++dim) ++uses[KeyIndex(is_paired, token, dim)];
    }
    EXPECT_THAT(uses, ::testing::Each(1));
  }
}

// Pages outlive the process that wrote them (spill, export, migration), so no instruction set may
// lay them out in its own way.
TEST(PackTest, EveryInstructionSetWritesTheLayoutAsDocumented) {
  constexpr int kTokens = 37, kHeads = 2, kDimQk = 5, kDimV = 19;
  for (std::int64_t target : {HWY_AVX3, HWY_AVX2, HWY_SSE4, HWY_EMU128, HWY_SCALAR}) {
    const KernelTable* kernels = ChooseKernels(target);
    if (kernels == nullptr) continue;
    for (DType dtype : kDTypes) {
      const KvGeometry geometry{kHeads, kDimQk, kDimV, dtype};
      const PackedLayout layout = MakePackedLayout(geometry, 48);
      std::vector<float> k(kTokens * kHeads * kDimQk), v(kTokens * kHeads * kDimV);
      // Small integers are exact in every type.
      for (std::size_t i = 0; i < k.size(); ++i) k[i] = static_cast<float>(i % 251);
      for (std::size_t i = 0; i < v.size(); ++i) v[i] = -static_cast<float>(i % 241);
      std::vector<char> page(layout.page_bytes, 0x55);
      void* table[1] = {page.data()};
      const KvAppendTask append{
          .geometry = geometry,
          .destination = {table, 1, 48},
          .position = 3,
          .num_tokens = kTokens,
          .k = DenseRows(static_cast<const void*>(k.data()), DType::kFloat32, kHeads, kDimQk),
          .v = DenseRows(static_cast<const void*>(v.data()), DType::kFloat32, kHeads, kDimV)};
      for (int head = 0; head < kHeads; ++head)
        kernels->pack(append, layout, head, 0, kTokens, false);
      const bool is_paired = dtype == DType::kBFloat16;
      for (int token = 0; token < kTokens; ++token) {
        const int position = token + 3;
        for (int head = 0; head < kHeads; ++head) {
          const char* keys = page.data() + layout.key_offset(head, position / 16);
          const char* values = page.data() + layout.value_offset(head, position / 16);
          for (int dim = 0; dim < kDimQk; ++dim) {
            ASSERT_EQ(LoadElement(keys, dtype, KeyIndex(is_paired, position % 16, dim)),
                      k[(token * kHeads + head) * kDimQk + dim]);
          }
          for (int channel = 0; channel < kDimV; ++channel) {
            ASSERT_EQ(
                LoadElement(values, dtype,
                            ValueIndex(is_paired, layout.padded_dim_v, position % 16, channel)),
                v[(token * kHeads + head) * kDimV + channel]);
          }
        }
      }
      // Tokens 0 to 2 were not written.
      EXPECT_EQ(page[layout.key_offset(0, 0)], 0x55);
    }
  }
}

}  // namespace
}  // namespace attention::cpu
