// A part of an append, so that a long one can be done in chunks.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/api/paged_kv_view.h"

namespace attention {

// Tokens [begin, begin + count) of `task`, which must contain them. The result refers to the rows
// of `task`, and to pieces that it keeps in this, which must outlive its use.
class AppendRange {
 public:
  AppendRange(const KvAppendTask& task, std::int64_t begin, std::int64_t count);
  AppendRange(const AppendRange&) = delete;
  AppendRange& operator=(const AppendRange&) = delete;

  const KvAppendTask& task() const { return task_; }

 private:
  KvAppendTask task_;
  std::vector<RowsPiece> k_pieces_;
  std::vector<RowsPiece> v_pieces_;
};

}  // namespace attention
