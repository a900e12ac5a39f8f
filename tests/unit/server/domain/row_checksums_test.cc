#include "server/domain/row_checksums.h"

#include <gmock/gmock.h>

#include <numeric>
#include <utility>
#include <vector>

namespace attention::server {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ne;

constexpr KvGeometry kGeometry{2, 3, 1, DType::kFloat32};

// Four tokens of k, 24 values, and of v, 8 values behind them.
class RowChecksumsTest : public ::testing::Test {
 protected:
  RowChecksumsTest() : values_(32) { std::iota(values_.begin(), values_.end(), 1.0f); }

  StepAppend Append(std::int64_t begin, std::int64_t num_tokens) const {
    StepAppend append;
    append.num_tokens = num_tokens;
    append.k = K(begin);
    append.v = V(begin);
    return append;
  }
  RowsView K(std::int64_t begin) const {
    return DenseRows(static_cast<const void*>(values_.data() + begin * 6), DType::kFloat32, 2, 3);
  }
  RowsView V(std::int64_t begin) const {
    return DenseRows(static_cast<const void*>(values_.data() + 24 + begin * 2), DType::kFloat32, 2,
                     1);
  }
  std::vector<std::uint32_t> All() const { return ChecksumRows(Append(0, 4), kGeometry); }

  std::vector<float> values_;
};

TEST_F(RowChecksumsTest, EachTokenHasItsOwnHoweverTheRowsAreCut) {
  const std::vector<std::uint32_t> all = All();
  ASSERT_EQ(all.size(), 4u);
  EXPECT_THAT(std::vector(all.begin() + 1, all.end()), Each(Ne(all[0])));
  EXPECT_EQ(ChecksumRows(Append(2, 2), kGeometry), std::vector(all.begin() + 2, all.end()));
  StepAppend pieces = Append(0, 4);
  pieces.k_pieces = {{0, K(0)}, {3, K(3)}};
  pieces.v_pieces = {{0, V(0)}, {1, V(1)}};
  pieces.k.data = pieces.v.data = nullptr;
  EXPECT_EQ(ChecksumRows(pieces, kGeometry), all);
}

TEST_F(RowChecksumsTest, KeysThatHoldTheirValuesAreAllThereIs) {
  KvGeometry latent = kGeometry;
  latent.value_is_key_prefix = true;
  StepAppend append = Append(0, 4);
  append.v = {};
  const std::vector<std::uint32_t> all = ChecksumRows(append, latent);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_THAT(std::vector(all.begin() + 1, all.end()), Each(Ne(all[0])));
}

TEST_F(RowChecksumsTest, AChangeOfAnyElementChangesThatToken) {
  const std::vector<std::uint32_t> before = All();
  for (std::size_t i = 0; i < values_.size(); ++i) {
    const float value = std::exchange(values_[i], -values_[i]);
    const std::size_t token = i < 24 ? i / 6 : (i - 24) / 2;
    const std::vector<std::uint32_t> after = All();
    for (std::size_t j = 0; j < 4; ++j) EXPECT_EQ(after[j] == before[j], j != token) << i;
    values_[i] = value;
  }
  EXPECT_EQ(All(), before);
}

TEST_F(RowChecksumsTest, TheSameBytesAsAnotherTypeAreOtherRows) {
  StepAppend bytes = Append(0, 1);
  bytes.k = {values_.data(), DType::kFloat16, 12, 6};
  const KvGeometry wide{2, 6, 1, DType::kFloat32};
  EXPECT_NE(ChecksumRows(bytes, wide)[0], All()[0]);
}

// Sessions are exported with them.
TEST_F(RowChecksumsTest, TheyAreTheSameInEveryServer) {
  EXPECT_THAT(All(), ElementsAre(0xbfa32592u, 0xf96c934cu, 0xc68d83c1u, 0x518303b0u));
}

TEST_F(RowChecksumsTest, RowsOfALayerDifferByLayer) {
  const auto* rows = reinterpret_cast<const char*>(values_.data());
  const std::vector<std::uint32_t> one = ChecksumInputs("one", rows, 4, 24);
  EXPECT_EQ(ChecksumInputs("one", rows + 24, 3, 24), std::vector(one.begin() + 1, one.end()));
  EXPECT_NE(ChecksumInputs("two", rows, 4, 24)[0], one[0]);
  EXPECT_TRUE(ChecksumInputs("one", rows, 0, 24).empty());
}

}  // namespace
}  // namespace attention::server
