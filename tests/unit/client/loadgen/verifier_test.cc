#include "client/loadgen/verifier.h"

#include <gmock/gmock.h>

#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

using ::testing::HasSubstr;

bool Never(std::int64_t) { return false; }

// An answer of the right shape, but zero everywhere, which is wrong.
Answer WrongAnswer() {
  Answer answer;
  answer.request.shape = SmallOptions().shape;
  answer.output = client::Tensor::FromFloats(std::vector<float>(3 * 4 * 6), {3, 4, 6});
  return answer;
}

class VerifierTest : public ::testing::Test {
 protected:
  const TensorPool pool_{DType::kFloat32, 1000, 1};
};

TEST_F(VerifierTest, ChoosesTheFraction) {
  Verifier verifier(pool_, 0.25, 1);
  int chosen = 0;
  for (int i = 0; i < 4000; ++i) chosen += verifier.Wants() ? 1 : 0;
  EXPECT_NEAR(chosen, 1000, 100);
  Verifier all(pool_, 1, 1);
  EXPECT_TRUE(all.Wants());
  Verifier none(pool_, 0, 1);
  EXPECT_FALSE(none.Wants());
}

TEST_F(VerifierTest, CountsAndDescribesMismatches) {
  Verifier verifier(pool_, 1, 1);
  int resumed = 0;
  for (int i = 0; i < 15; ++i) verifier.Submit(WrongAnswer(), [&resumed] { ++resumed; });
  EXPECT_EQ(resumed, 15);
  const VerifyResult result = verifier.Finish(Never);
  EXPECT_EQ(result.num_checked, 15);
  EXPECT_EQ(result.num_mismatches, 15);
  EXPECT_EQ(result.num_unchecked, 0);
  ASSERT_EQ(result.mismatches.size(), 10u) << "only the first are described";
  EXPECT_THAT(result.mismatches[0], HasSubstr("query 0, head 0: relative error"));
  EXPECT_THAT(result.mismatches[0], HasSubstr("q_len=3 kv_len=5"));
}

TEST_F(VerifierTest, HoldsUsersBackOnceAnswersPileUp) {
  constexpr std::int64_t kBytes = 3 * 4 * 6 * 4;
  Verifier verifier(pool_, 1, 1, /*max_pending_bytes=*/2 * kBytes);
  std::atomic<int> resumed = 0;
  for (int i = 0; i < 50; ++i) verifier.Submit(WrongAnswer(), [&resumed] { ++resumed; });
  const VerifyResult result = verifier.Finish(Never);
  EXPECT_EQ(result.num_checked, 50);
  EXPECT_EQ(resumed, 50);
}

TEST_F(VerifierTest, AnInterruptLeavesTheRestUncheckedAndSaysSo) {
  Verifier verifier(pool_, 1, 1);
  Answer slow = WrongAnswer();
  slow.request.shape.q_len = 1;
  slow.request.shape.kv_len = 300000;
  slow.output = client::Tensor::FromFloats(std::vector<float>(4 * 6), {1, 4, 6});
  constexpr int kAnswers = 40;
  for (int i = 0; i < kAnswers; ++i) verifier.Submit(slow, [] {});
  const VerifyResult result = verifier.Finish([](std::int64_t) { return true; });
  EXPECT_GT(result.num_unchecked, 0);
  EXPECT_EQ(result.num_checked + result.num_unchecked, kAnswers);
}

}  // namespace
}  // namespace attention::loadgen
