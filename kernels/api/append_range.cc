#include "kernels/api/append_range.h"

#include <algorithm>
#include <cstddef>
#include <span>

namespace attention {
namespace {

RowsView From(RowsView rows, std::int64_t row) {
  if (rows.data == nullptr) return rows;
  rows.data = static_cast<const std::byte*>(rows.data) +
              row * rows.row_stride * static_cast<std::int64_t>(DTypeBytes(rows.dtype));
  return rows;
}

// The pieces that hold rows [begin, end), counted from `begin`.
std::vector<RowsPiece> Cut(std::span<const RowsPiece> pieces, std::int64_t begin,
                           std::int64_t end) {
  std::vector<RowsPiece> cut;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::int64_t piece_end = i + 1 < pieces.size() ? pieces[i + 1].begin_row : end;
    const std::int64_t first = std::max(begin, pieces[i].begin_row);
    if (first >= std::min(end, piece_end)) continue;
    cut.push_back({first - begin, From(pieces[i].rows, first - pieces[i].begin_row)});
  }
  return cut;
}

}  // namespace

AppendRange::AppendRange(const KvAppendTask& task, std::int64_t begin, std::int64_t count)
    : task_(task),
      k_pieces_(Cut(task.k_pieces, begin, begin + count)),
      v_pieces_(Cut(task.v_pieces, begin, begin + count)) {
  task_.position += begin;
  task_.num_tokens = count;
  task_.k = From(task.k, begin);
  task_.v = From(task.v, begin);
  task_.k_pieces = k_pieces_;
  task_.v_pieces = v_pieces_;
}

}  // namespace attention
