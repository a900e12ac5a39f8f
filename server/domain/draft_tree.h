// The tree of a step's drafts, with the memory that the kernels' view of it refers to.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/api/draft_tree.h"

namespace attention::server {

struct DraftTree {
  std::int64_t words_per_row = 0;
  std::vector<std::uint64_t> ancestors;  // [rows][words_per_row]
  std::vector<std::int32_t> depths;      // [rows]

  DraftTreeView view() const { return {ancestors.data(), words_per_row, depths.data()}; }
};

}  // namespace attention::server
