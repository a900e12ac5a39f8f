#include "server/wire/draft_tree_decoder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/divide.h"
#include "server/base/status_macros.h"
#include "server/domain/draft_tree.h"

namespace attention::server {
namespace {

absl::Status CheckFields(const v1::SessionStep& wire) {
  const auto refuse = [](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(what, " with a tree"));
  };
  if (!wire.has_k()) return refuse("k is missing, expected the rows to append");
  if (wire.has_first_query_position())
    return refuse("first_query_position is given, expected none");
  if (wire.has_kv_end()) return refuse("kv_end is given, expected none");
  if (wire.kv_begin() <= wire.expected_position()) return absl::OkStatus();
  return refuse(absl::StrCat("kv_begin is ", wire.kv_begin(), ", expected at most ",
                             wire.expected_position(), " (expected_position)"));
}

absl::Status CheckSizes(std::int64_t rows, const SessionStep& step, std::int64_t bytes) {
  if (step.append->num_tokens != rows) {
    return absl::InvalidArgumentError(absl::StrCat("q.shape has ", rows, " rows, expected ",
                                                   step.append->num_tokens, ", as k, with a tree"));
  }
  if (rows < 1 || rows > kMaxDraftRows) {
    return absl::InvalidArgumentError(
        absl::StrCat("q.shape has ", rows, " rows, expected 1 to ", kMaxDraftRows, " with a tree"));
  }
  const std::int64_t expected = rows * CeilDiv<std::int64_t>(rows, 8);
  if (bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tree.ancestors has ", bytes, " bytes, expected ",
                                                 expected, ": ", rows, " rows of ",
                                                 expected / rows));
}

absl::Status InvalidRow(std::int64_t row, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat("tree.ancestors[", row, "] ", expected));
}

// The highest bit below `row`, or -1.
std::int64_t ParentOf(const std::uint64_t* bits, std::int64_t row) {
  for (std::int64_t word = row / 64; word >= 0; --word) {
    std::uint64_t left = bits[word];
    if (word == row / 64) left &= (std::uint64_t{1} << (row % 64)) - 1;
    if (left != 0) return word * 64 + 63 - std::countl_zero(left);
  }
  return -1;
}

// A row's ancestors are those of its parent, the parent among them.
absl::Status CheckRow(const DraftTree& tree, std::int64_t row, std::int64_t parent) {
  const std::uint64_t* bits = tree.ancestors.data() + row * tree.words_per_row;
  if ((bits[row / 64] >> (row % 64) & 1) == 0) {
    return InvalidRow(row, "lacks its own bit, expected a row to be among its ancestors");
  }
  for (std::int64_t word = 0; word < tree.words_per_row; ++word) {
    std::uint64_t expected = parent < 0 ? 0 : tree.ancestors[parent * tree.words_per_row + word];
    if (word == row / 64) expected |= std::uint64_t{1} << (row % 64);
    const std::uint64_t different = bits[word] ^ expected;
    if (different == 0) continue;
    const std::int64_t other = word * 64 + std::countr_zero(different);
    if (other > row) {
      return InvalidRow(row, absl::StrCat("names row ", other, ", expected rows up to its own"));
    }
    const bool is_named = (bits[word] >> (other % 64) & 1) != 0;
    return InvalidRow(row, absl::StrCat(is_named ? "names row " : "lacks row ", other,
                                        ", expected the ancestors of row ", parent,
                                        ", which it names, and itself"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status DecodeDraftTree(const v1::SessionStep& wire, SessionStep* step) {
  if (!wire.has_tree()) return absl::OkStatus();
  ATTENTION_RETURN_IF_ERROR(CheckFields(wire));
  AttentionTask& task = step->attend->task;
  const std::int64_t rows = task.q_len;
  const std::string& packed = wire.tree().ancestors();
  ATTENTION_RETURN_IF_ERROR(CheckSizes(rows, *step, static_cast<std::int64_t>(packed.size())));
  auto tree = std::make_shared<DraftTree>();
  tree->words_per_row = CeilDiv<std::int64_t>(rows, 64);
  tree->ancestors.resize(static_cast<std::size_t>(rows * tree->words_per_row));
  tree->depths.resize(static_cast<std::size_t>(rows));
  const std::int64_t row_bytes = CeilDiv<std::int64_t>(rows, 8);
  for (std::int64_t row = 0; row < rows; ++row) {
    std::uint64_t* bits = tree->ancestors.data() + row * tree->words_per_row;
    // Words are little-endian, as the wire is and as every processor here.
    std::memcpy(bits, packed.data() + row * row_bytes, static_cast<std::size_t>(row_bytes));
    const std::int64_t parent = ParentOf(bits, row);
    ATTENTION_RETURN_IF_ERROR(CheckRow(*tree, row, parent));
    tree->depths[static_cast<std::size_t>(row)] =
        parent < 0 ? 0 : tree->depths[static_cast<std::size_t>(parent)] + 1;
  }
  task.params.is_tree = true;
  task.tree = tree->view();
  step->attend->tree = std::move(tree);
  return absl::OkStatus();
}

}  // namespace attention::server
