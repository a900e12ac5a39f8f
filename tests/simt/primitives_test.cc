// Fragments lie in the lanes as the PTX manual has them: a product by fragments is the product of
// the matrices.
#include <gmock/gmock.h>

#include <cstring>
#include <random>

#include "kernels/cuda/kernels/intrinsics/simt.h"

namespace attention::cuda {
namespace {

using simt::Current;
using simt::RunBlocks;

TEST(PrimitivesTest, ShufflesExchangeWithTheLaneOfTheOtherBits) {
  RunBlocks(1, 64, 0, 1, [](char*) {
    for (int mask : {1, 2, 4, 8, 16}) {
      const auto mine = static_cast<float>(ThreadIndex());
      EXPECT_EQ(ShuffleXor(mine, mask), static_cast<float>(ThreadIndex() ^ mask));
    }
  });
}

// C = A B^T for A [16][16] and B [8][16] in shared memory, as the kernels compute scores; then
// C = A V for V [16][8], loaded transposed, as they add values.
template <DType kType>
void ExpectProducts() {
  static std::uint16_t a[16][16], b[16][16], v[16][16];
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (auto* matrix : {&a, &b, &v}) {
    for (auto& row : *matrix) {
      for (std::uint16_t& element : row) StoreElement(&element, kType, 0, normal(random));
    }
  }
  const auto value = [](const std::uint16_t& bits) { return LoadElement(&bits, kType, 0); };
  RunBlocks(1, 32, 3 * 512, 1, [&](char* shared) {
    const int lane = ThreadIndex();
    if (lane == 0) {
      std::memcpy(shared, a, 512);
      std::memcpy(shared + 512, b, 512);
      std::memcpy(shared + 1024, v, 512);
    }
    SyncThreads();
    std::uint32_t fa[4], fb[4], fv[4];
    LoadMatrix4(fa, shared + lane % 16 * 32 + lane / 16 * 16);
    LoadMatrix4(fb, shared + 512 + (lane % 8 + lane / 16 * 8) * 32 + lane / 8 % 2 * 16);
    LoadMatrix4Transposed(fv, shared + 1024 + lane % 16 * 32 + lane / 16 * 16);
    for (int block = 0; block < 2; ++block) {
      float scores[4] = {1, 2, 3, 4}, sums[4] = {0, 0, 0, 0};
      Mma<kType>(scores, fa, fb[2 * block], fb[2 * block + 1]);
      Mma<kType>(sums, fa, fv[2 * block], fv[2 * block + 1]);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = block * 8 + lane % 4 * 2 + i % 2;
        double score = i + 1, sum = 0;
        for (int k = 0; k < 16; ++k) {
          score += value(a[row][k]) * value(b[column][k]);
          sum += value(a[row][k]) * value(v[k][column]);
        }
        EXPECT_NEAR(scores[i], score, 1e-5);
        EXPECT_NEAR(sums[i], sum, 1e-5);
      }
    }
  });
}

TEST(PrimitivesTest, ProductsOfFragmentsAreProductsOfMatrices) {
  ExpectProducts<DType::kBFloat16>();
  ExpectProducts<DType::kFloat16>();
}

TEST(PrimitivesTest, PairsOfBFloat16AreMultipliedEachByEach) {
  const std::uint32_t a = PackPair<DType::kBFloat16>(1.5f, -0.0f);
  const std::uint32_t b = PackPair<DType::kBFloat16>(-3.0f, 2.0f);
  EXPECT_EQ(MultiplyBFloatPairs(a, b), PackPair<DType::kBFloat16>(-4.5f, -0.0f));
  // Subnormals are numbers like others.
  EXPECT_EQ(MultiplyBFloatPairs(0x00010070u, 0x7b807b80u),
            PackPair<DType::kBFloat16>(0x1.cp-7f, 0x1p-13f));
}

TEST(PrimitivesTest, BytesArePermutedAsTheSelectorSays) {
  EXPECT_EQ(PermuteBytes(0x33221100u, 0x77665544u, 0x3210), 0x33221100u);
  EXPECT_EQ(PermuteBytes(0x33221100u, 0x77665544u, 0x7360), 0x77336600u);
}

}  // namespace
}  // namespace attention::cuda
