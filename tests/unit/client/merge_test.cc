#include "attention/client/merge.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace attention::client {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kHeadDim = 3;

struct Part {
  Tensor output;  // [1, 1, kHeadDim]
  Tensor lse;     // [1, 1]
  Partial partial() const { return {&output, &lse}; }
};

Part MakePart(std::vector<float> output, float lse, DType dtype = DType::kFloat32) {
  return {Tensor::FromFloats(output, {1, 1, static_cast<std::int64_t>(output.size())}, dtype),
          Tensor::FromFloats(std::vector<float>{lse}, {1, 1})};
}

// Attention over the given scores and values [scores.size(), kHeadDim], in float64.
Part Attend(const std::vector<double>& scores, const std::vector<double>& values) {
  double denominator = 0;
  std::vector<double> sum(kHeadDim, 0.0);
  for (std::size_t j = 0; j < scores.size(); ++j) {
    denominator += std::exp(scores[j]);
    for (std::size_t d = 0; d < kHeadDim; ++d)
      sum[d] += std::exp(scores[j]) * values[j * kHeadDim + d];
  }
  std::vector<float> output(kHeadDim);
  for (std::size_t d = 0; d < kHeadDim; ++d) output[d] = static_cast<float>(sum[d] / denominator);
  return MakePart(output, static_cast<float>(std::log(denominator)));
}

TEST(MergePartialsTest, PartsOfTheKeysBecomeTheWhole) {
  std::mt19937 generator(7);
  std::uniform_real_distribution<double> uniform(-3, 3);
  std::vector<double> scores(10), values(10 * kHeadDim);
  for (double& score : scores) score = uniform(generator);
  for (double& value : values) value = uniform(generator);
  const auto slice = [&](std::size_t begin, std::size_t end) {
    return Attend({scores.begin() + begin, scores.begin() + end},
                  {values.begin() + begin * kHeadDim, values.begin() + end * kHeadDim});
  };
  const Part whole = slice(0, 10), a = slice(0, 1), b = slice(1, 6), c = slice(6, 10);

  const auto merged = MergePartials({a.partial(), b.partial(), c.partial()});
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->output.shape(), whole.output.shape());
  EXPECT_EQ(merged->lse.shape(), whole.lse.shape());
  for (std::size_t d = 0; d < kHeadDim; ++d) {
    EXPECT_NEAR(merged->output.floats()[d], whole.output.floats()[d], 1e-6);
  }
  EXPECT_NEAR(merged->lse.floats()[0], whole.lse.floats()[0], 1e-6);
}

TEST(MergePartialsTest, OnePartIsItself) {
  const Part part = MakePart({1, 2, 3}, 0.25f);
  const auto merged = MergePartials({part.partial()});
  ASSERT_TRUE(merged.ok());
  EXPECT_THAT(merged->output.floats(), testing::ElementsAre(1, 2, 3));
  EXPECT_EQ(merged->lse.floats()[0], 0.25f);
}

TEST(MergePartialsTest, NothingVisibleTakesNoPartWhateverItsOutput) {
  const Part part = MakePart({1, 2, 3}, 5);
  const Part nothing = MakePart({NAN, kInfinity, 0}, -kInfinity);
  const auto merged = MergePartials({nothing.partial(), part.partial()});
  ASSERT_TRUE(merged.ok());
  EXPECT_THAT(merged->output.floats(), testing::ElementsAre(1, 2, 3));
  EXPECT_EQ(merged->lse.floats()[0], 5);
}

TEST(MergePartialsTest, NothingVisibleAnywhereIsZero) {
  const Part nothing = MakePart({0, 0, 0}, -kInfinity);
  const auto merged = MergePartials({nothing.partial(), nothing.partial()});
  ASSERT_TRUE(merged.ok());
  EXPECT_THAT(merged->output.floats(), testing::ElementsAre(0, 0, 0));
  EXPECT_EQ(merged->lse.floats()[0], -kInfinity);
}

TEST(MergePartialsTest, LargeLogSumsDoNotOverflow) {
  const Part a = MakePart({1, 1, 1}, 500), b = MakePart({3, 3, 3}, 500);
  const auto merged = MergePartials({a.partial(), b.partial()});
  ASSERT_TRUE(merged.ok());
  EXPECT_THAT(merged->output.floats(), testing::ElementsAre(2, 2, 2));
  EXPECT_NEAR(merged->lse.floats()[0], 500 + std::log(2.0), 1e-4);
}

TEST(MergePartialsTest, NanPropagates) {
  const Part good = MakePart({1, 2, 3}, 1), bad = MakePart({1, 2, 3}, NAN);
  const auto merged = MergePartials({good.partial(), bad.partial()});
  ASSERT_TRUE(merged.ok());
  EXPECT_TRUE(std::isnan(merged->output.floats()[0]));
  EXPECT_TRUE(std::isnan(merged->lse.floats()[0]));
}

TEST(MergePartialsTest, HalfPrecisionPartsMergeToFloat32) {
  const Part a = MakePart({1, 2, 3}, 0, DType::kBFloat16);
  const Part b = MakePart({3, 4, 5}, 0, DType::kBFloat16);
  const auto merged = MergePartials({a.partial(), b.partial()});
  ASSERT_TRUE(merged.ok());
  EXPECT_THAT(merged->output.floats(), testing::ElementsAre(2, 3, 4));
}

TEST(MergePartialsTest, RefusesWhatDoesNotFit) {
  const Part part = MakePart({1, 2, 3}, 0), shorter = MakePart({1, 2}, 0);
  const Part no_lse = {part.output, Tensor()};
  const Part flat = {part.output, Tensor::FromFloats(std::vector<float>{0}, {1})};
  const Part half_lse = {part.output,
                         Tensor::FromFloats(std::vector<float>{0}, {1, 1}, DType::kFloat16)};
  const Part mask = {Tensor(DType::kBool, {1, 1, 3}, "\1\1\1"), part.lse};
  const auto code = [](std::vector<Partial> partials) {
    return MergePartials(partials).status().code();
  };
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({Partial{}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({part.partial(), shorter.partial()}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({no_lse.partial()}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({flat.partial()}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({half_lse.partial()}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({mask.partial()}), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace attention::client
