// Which of the library's algorithms compute a layer's products. Pure functions: what the algorithms
// computed of a probe (matmul_probe.h) comes in as fingerprints.
//
// A row's bits must not depend on the rows beside it, so products are computed in blocks of a few
// fixed numbers of rows, whatever fills them, and of all that the library offers for each number
// only such algorithms are used together as sum in one order: that gave the same bits for the same
// random rows, at every place in a block. Two orders of summation that agree in all of some 10^5
// sums of random numbers are the same order.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/cuda/device/matmul.h"

namespace attention::cuda {

struct ProbedAlgorithm {
  MatmulAlgorithm algorithm;
  // The fingerprint of the probe's product. None: a row's bits depend on its place in a block, or
  // it failed.
  std::optional<std::uint64_t> fingerprint;
};

// The algorithms tried for blocks of so many rows, the library's favourite first.
struct BlockCandidates {
  std::int64_t rows = 0;
  std::vector<ProbedAlgorithm> candidates;
};

struct BlockAlgorithm {
  std::int64_t rows = 0;
  MatmulAlgorithm algorithm;

  auto operator<=>(const BlockAlgorithm&) const = default;
};

// How the products of a layer's shape are computed.
struct MatmulBlocks {
  std::vector<BlockAlgorithm> sizes;  // ascending
  bool has_bias = true;               // else it is added to the product
};

// Algorithms asked of the library for each number of rows; one that is missing counts as worse than
// all of them.
inline constexpr int kMaxCandidates = 8;

// For each number of rows (`sizes` ascend) the first algorithm of one common fingerprint: the one
// that takes the library's favourites, by the sum of their ranks. Sizes that have none are left
// out; empty: no algorithm is to be had.
std::vector<BlockAlgorithm> ChooseAlgorithms(std::span<const BlockCandidates> sizes);

// Rows of the block that `left` rows begin with: one that they do not fill, where that costs less
// than smaller ones. `blocks` ascend and are not empty.
const BlockAlgorithm& BlockFor(std::span<const BlockAlgorithm> blocks, std::int64_t left);

// Rows of all blocks that `rows` rows take.
std::int64_t RowsOfBlocks(std::span<const BlockAlgorithm> blocks, std::int64_t rows);

}  // namespace attention::cuda
