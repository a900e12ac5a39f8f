#include "kernels/cuda/projection/matmul_choice.h"

#include <algorithm>
#include <map>
#include <set>

namespace attention::cuda {
namespace {

// Rows whose arithmetic hides behind one pass over the weights. An H200 multiplies 742 TFLOP/s and
// reads 4.1 TB/s; a 16-bit weight is two bytes and two operations a row: 181 rows, of which the
// sizes below take 128.
constexpr std::int64_t kPassRows = 128;

std::int64_t CostOf(const BlockAlgorithm& block) { return std::max(block.rows, kPassRows); }

// The smallest that holds `rows`; the largest of all when none does.
const BlockAlgorithm& SmallestFor(std::span<const BlockAlgorithm> blocks, std::int64_t rows) {
  for (const BlockAlgorithm& block : blocks) {
    if (block.rows >= rows) return block;
  }
  return blocks.back();
}

}  // namespace

std::vector<BlockAlgorithm> ChooseAlgorithms(std::span<const BlockCandidates> sizes) {
  // By how much the ranks of each fingerprint are below those of a size without it.
  std::map<std::uint64_t, std::int64_t> gains;
  for (const BlockCandidates& size : sizes) {
    std::set<std::uint64_t> seen;
    for (std::size_t rank = 0; rank < size.candidates.size(); ++rank) {
      const std::optional<std::uint64_t> print = size.candidates[rank].fingerprint;
      if (!print.has_value() || !seen.insert(*print).second) continue;
      gains[*print] += std::max<std::int64_t>(1, kMaxCandidates - static_cast<std::int64_t>(rank));
    }
  }
  std::vector<BlockAlgorithm> blocks;
  if (gains.empty()) return blocks;
  const auto best = std::max_element(
      gains.begin(), gains.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  for (const BlockCandidates& size : sizes) {
    const auto found = std::find_if(
        size.candidates.begin(), size.candidates.end(),
        [&](const ProbedAlgorithm& probed) { return probed.fingerprint == best->first; });
    if (found != size.candidates.end()) blocks.push_back({size.rows, found->algorithm});
  }
  return blocks;
}

const BlockAlgorithm& BlockFor(std::span<const BlockAlgorithm> blocks, std::int64_t left) {
  const BlockAlgorithm& above = SmallestFor(blocks, left);
  if (above.rows <= left) return above;
  // The largest that they fill, if there is one, and what is left then.
  const BlockAlgorithm* below = nullptr;
  for (const BlockAlgorithm& block : blocks) {
    if (block.rows <= left) below = &block;
  }
  if (below == nullptr) return above;
  const std::int64_t apart = CostOf(*below) + CostOf(SmallestFor(blocks, left - below->rows));
  return CostOf(above) <= apart ? above : *below;
}

std::int64_t RowsOfBlocks(std::span<const BlockAlgorithm> blocks, std::int64_t rows) {
  std::int64_t sum = 0;
  while (sum < rows) sum += BlockFor(blocks, rows - sum).rows;
  return sum;
}

}  // namespace attention::cuda
