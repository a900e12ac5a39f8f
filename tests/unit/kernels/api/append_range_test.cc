#include "kernels/api/append_range.h"

#include <gtest/gtest.h>

#include <vector>

namespace attention {
namespace {

constexpr std::int64_t kTokens = 23;
constexpr int kHeads = 2;
constexpr int kDim = 3;

// Where token `row` of the task's keys lies.
const float* RowOf(const RowsView& rows, std::span<const RowsPiece> pieces, std::int64_t row) {
  RowsView view = rows;
  std::int64_t first = 0;
  for (const RowsPiece& piece : pieces) {
    if (piece.begin_row > row) break;
    view = piece.rows;
    first = piece.begin_row;
  }
  return static_cast<const float*>(view.data) + (row - first) * view.row_stride;
}

TEST(AppendRangeTest, EveryRangeRefersToItsRowsWholeOrInPieces) {
  std::vector<float> k(kTokens * kHeads * kDim);
  const auto row = [&](std::int64_t token) {
    return static_cast<const void*>(k.data() + token * kHeads * kDim);
  };
  const RowsView all = DenseRows(row(0), DType::kFloat32, kHeads, kDim);
  std::vector<RowsPiece> pieces;
  for (const std::int64_t begin : {0, 1, 9, 16}) {
    pieces.push_back({begin, DenseRows(row(begin), DType::kFloat32, kHeads, kDim)});
  }
  KvAppendTask task;
  task.position = 100;
  task.num_tokens = kTokens;
  task.v = all;            // in one
  task.k_pieces = pieces;  // in pieces
  for (std::int64_t begin = 0; begin < kTokens; ++begin) {
    for (std::int64_t end = begin + 1; end <= kTokens; ++end) {
      const AppendRange range(task, begin, end - begin);
      EXPECT_EQ(range.task().position, 100 + begin);
      ASSERT_EQ(range.task().num_tokens, end - begin);
      ASSERT_EQ(range.task().k_pieces.front().begin_row, 0);
      for (std::int64_t i = 0; i < end - begin; ++i) {
        EXPECT_EQ(RowOf(range.task().k, range.task().k_pieces, i), row(begin + i));
        EXPECT_EQ(RowOf(range.task().v, range.task().v_pieces, i), row(begin + i));
      }
    }
  }
}

}  // namespace
}  // namespace attention
