// Walks through rows that lie in one view or in pieces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include "kernels/api/tensor_view.h"

namespace attention {

// Rows must be asked for in ascending order, but for those of the present piece. The pieces must
// outlive the cursor.
class RowsCursor {
 public:
  // Over `pieces` if there are some, else over `rows`; no row before first_row will be asked for.
  RowsCursor(const RowsView& rows, std::span<const RowsPiece> pieces, std::int64_t first_row)
      : view_(rows), pieces_(pieces) {
    if (pieces.empty()) return;
    const auto after = std::upper_bound(
        pieces.begin() + 1, pieces.end(), first_row,
        [](std::int64_t row, const RowsPiece& piece) { return row < piece.begin_row; });
    Enter(static_cast<std::size_t>(after - pieces.begin()) - 1);
  }

  // The address of a row's head.
  const char* At(std::int64_t row, int head) {
    while (row >= end_) Enter(index_ + 1);
    return static_cast<const char*>(view_.data) +
           ((row - begin_) * view_.row_stride + head * view_.head_stride) *
               static_cast<std::int64_t>(DTypeBytes(view_.dtype));
  }

  // The type of the row that was asked for last.
  DType dtype() const { return view_.dtype; }

  // Rows before it lie in the present piece.
  std::int64_t end() const { return end_; }

 private:
  void Enter(std::size_t index) {
    index_ = index;
    view_ = pieces_[index].rows;
    begin_ = pieces_[index].begin_row;
    end_ = index + 1 < pieces_.size() ? pieces_[index + 1].begin_row
                                      : std::numeric_limits<std::int64_t>::max();
  }

  RowsView view_;
  std::span<const RowsPiece> pieces_;
  std::size_t index_ = 0;
  std::int64_t begin_ = 0;
  std::int64_t end_ = std::numeric_limits<std::int64_t>::max();
};

}  // namespace attention
