// Draft tokens of one step as a tree, as kernels see it.
#pragma once

#include <cstdint>

namespace attention {

// Row i of a step is one draft: a query, and the key that lies q_len - i places before the last
// one. It follows another row of a lower index, or the sequence before the step.
struct DraftTreeView {
  // [q_len][words_per_row]; bit j % 64 of word j / 64 of row i is set if row j is an ancestor of
  // row i, or row i itself. Null: there is no tree.
  const std::uint64_t* ancestors = nullptr;
  std::int64_t words_per_row = 0;
  const std::int32_t* depths = nullptr;  // [q_len], the number of a row's ancestors

  bool has_rows() const { return ancestors != nullptr; }
  bool IsAncestor(std::int64_t row, std::int64_t other) const {
    return (ancestors[row * words_per_row + other / 64] >> (other % 64) & 1) != 0;
  }
};

}  // namespace attention
