#include "kernels/cuda/projection/matmul_choice.h"

#include <gmock/gmock.h>

namespace attention::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

MatmulAlgorithm Named(std::uint64_t name) { return {{name}, 0}; }

// Algorithms by name and fingerprint; 0: none.
BlockCandidates Size(std::int64_t rows,
                     std::vector<std::pair<std::uint64_t, std::uint64_t>> candidates) {
  BlockCandidates size{rows, {}};
  for (const auto& [name, print] : candidates) {
    size.candidates.push_back(
        {Named(name), print == 0 ? std::nullopt : std::optional<std::uint64_t>(print)});
  }
  return size;
}

TEST(ChooseAlgorithmsTest, AllSizesTakeAlgorithmsOfOneFingerprint) {
  const BlockCandidates sizes[] = {Size(16, {{1, 70}, {2, 80}}), Size(64, {{3, 80}, {4, 70}}),
                                   Size(256, {{5, 80}, {6, 90}})};
  EXPECT_THAT(ChooseAlgorithms(sizes),
              ElementsAre(BlockAlgorithm{16, Named(2)}, BlockAlgorithm{64, Named(3)},
                          BlockAlgorithm{256, Named(5)}));
}

TEST(ChooseAlgorithmsTest, OfAFingerprintThatTheLibraryLikesBest) {
  const BlockCandidates sizes[] = {Size(16, {{1, 70}, {2, 80}}), Size(64, {{3, 70}, {4, 80}})};
  EXPECT_THAT(ChooseAlgorithms(sizes),
              ElementsAre(BlockAlgorithm{16, Named(1)}, BlockAlgorithm{64, Named(3)}));
}

TEST(ChooseAlgorithmsTest, ASizeThatHasNoneOfItIsLeftOut) {
  const BlockCandidates sizes[] = {Size(16, {{1, 70}}), Size(64, {{2, 80}, {3, 90}}),
                                   Size(256, {{4, 80}})};
  EXPECT_THAT(ChooseAlgorithms(sizes),
              ElementsAre(BlockAlgorithm{64, Named(2)}, BlockAlgorithm{256, Named(4)}));
}

TEST(ChooseAlgorithmsTest, WhatDependsOnThePlaceIsNeverTaken) {
  const BlockCandidates sizes[] = {Size(16, {{1, 0}, {2, 70}}), Size(64, {{3, 0}})};
  EXPECT_THAT(ChooseAlgorithms(sizes), ElementsAre(BlockAlgorithm{16, Named(2)}));
  const BlockCandidates none[] = {Size(16, {{1, 0}}), Size(64, {})};
  EXPECT_THAT(ChooseAlgorithms(none), IsEmpty());
}

TEST(ChooseAlgorithmsTest, AFavouriteCountsOnceHoweverManyGiveItsBits) {
  const BlockCandidates sizes[] = {Size(16, {{1, 80}, {2, 70}, {3, 70}, {4, 70}})};
  EXPECT_THAT(ChooseAlgorithms(sizes), ElementsAre(BlockAlgorithm{16, Named(1)}));
}

std::vector<std::int64_t> BlocksOf(std::vector<std::int64_t> sizes, std::int64_t rows) {
  std::vector<BlockAlgorithm> blocks;
  for (std::int64_t size : sizes) blocks.push_back({size, {}});
  std::vector<std::int64_t> taken;
  std::int64_t sum = 0;
  while (sum < rows) {
    taken.push_back(BlockFor(blocks, rows - sum).rows);
    sum += taken.back();
  }
  EXPECT_EQ(RowsOfBlocks(blocks, rows), sum);
  return taken;
}

TEST(BlockForTest, FewRowsTakeOnePassOverTheWeights) {
  EXPECT_THAT(BlocksOf({16, 64, 128, 1024}, 1), ElementsAre(16));
  EXPECT_THAT(BlocksOf({16, 64, 128, 1024}, 17), ElementsAre(64));
  EXPECT_THAT(BlocksOf({16, 64, 128, 1024}, 128), ElementsAre(128));
}

TEST(BlockForTest, ManyRowsAreNotFilledUpForMoreThanASmallerBlockCosts) {
  EXPECT_THAT(BlocksOf({16, 64, 128, 1024}, 150), ElementsAre(128, 64));
  EXPECT_THAT(BlocksOf({16, 64, 128, 1024}, 1024), ElementsAre(1024));
  EXPECT_THAT(BlocksOf({16, 64, 128, 256, 512, 1024}, 2600), ElementsAre(1024, 1024, 512, 64));
  EXPECT_THAT(BlocksOf({16, 64, 128, 256, 512, 1024}, 500), ElementsAre(512));
}

TEST(BlockForTest, OneSizeServesAll) { EXPECT_THAT(BlocksOf({64}, 65), ElementsAre(64, 64)); }

}  // namespace
}  // namespace attention::cuda
