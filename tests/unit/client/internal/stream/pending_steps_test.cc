#include "client/internal/stream/pending_steps.h"

#include <gmock/gmock.h>

#include "attention/client/errors.h"

namespace attention::client::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::size_t kLayer = 1, kOtherLayer = 2;

PendingStep Step(std::size_t layer) {
  PendingStep step;
  step.layers = {layer};
  return step;
}

// A step whose tensors lie in shared memory.
PendingStep SharedStep(std::size_t layer) {
  PendingStep step = Step(layer);
  step.shared = std::make_shared<SharedMemoryRequest>(nullptr, SharedInputs(), nullptr);
  return step;
}

absl::StatusOr<StepResult> Misplaced() {
  StepResult result;
  result.results.resize(1);
  result.results[0].status = WithReason(absl::FailedPreconditionError("a gap"), kPositionMismatch);
  return result;
}

class PendingStepsTest : public testing::Test {
 protected:
  // The server answers the request; true if the answer is held back.
  bool Answer(std::uint64_t id, absl::StatusOr<StepResult> result, bool is_lost = false) {
    std::optional<PendingStep> step = steps_.Take(id);
    EXPECT_TRUE(step.has_value());
    return steps_.HoldBack(id, *step, is_lost, result);
  }
  bool Lose(std::uint64_t id) {
    return Answer(id, absl::NotFoundError("region"), /*is_lost=*/true);
  }

  // Ids of what was decided.
  template <typename Steps>
  static std::vector<std::uint64_t> IdsOf(const Steps& steps) {
    std::vector<std::uint64_t> ids;
    for (const auto& [id, step] : steps) ids.push_back(id);
    return ids;
  }

  PendingSteps steps_;
};

TEST_F(PendingStepsTest, AnAnswerStandsWhenNothingBeforeItMayBeLost) {
  steps_.Add(1, Step(kLayer));
  steps_.Add(2, Step(kLayer));
  EXPECT_FALSE(Answer(2, Misplaced()));
  EXPECT_FALSE(Answer(1, StepResult()));
  EXPECT_EQ(steps_.size(), 0u);
  EXPECT_FALSE(steps_.Take(1).has_value());
}

TEST_F(PendingStepsTest, ALostStepAndThoseBehindItAreSentAgainInOrder) {
  steps_.Add(1, SharedStep(kLayer));
  steps_.Add(2, SharedStep(kLayer));
  steps_.Add(3, SharedStep(kOtherLayer));
  EXPECT_TRUE(Answer(2, Misplaced()));
  EXPECT_TRUE(Lose(1));
  EXPECT_FALSE(Answer(3, StepResult()));
  EXPECT_TRUE(steps_.is_holding_back());
  EXPECT_EQ(steps_.num_sent(), 0u);
  const PendingSteps::Decided decided = steps_.Decide();
  EXPECT_THAT(IdsOf(decided.again), ElementsAre(1, 2));
  EXPECT_THAT(decided.answered, IsEmpty());
  EXPECT_FALSE(steps_.is_holding_back());
}

TEST_F(PendingStepsTest, AStepBehindALostOneIsSentAgainWhateverItsAnswer) {
  steps_.Add(1, SharedStep(kLayer));
  steps_.Add(2, Step(kLayer));
  EXPECT_TRUE(Lose(1));
  EXPECT_TRUE(Answer(2, StepResult()));
  EXPECT_THAT(IdsOf(steps_.Decide().again), ElementsAre(1, 2));
}

TEST_F(PendingStepsTest, ARefusalStandsOnceTheStepBeforeItHasArrived) {
  steps_.Add(1, SharedStep(kLayer));
  steps_.Add(2, Step(kLayer));
  EXPECT_TRUE(Answer(2, Misplaced()));
  EXPECT_FALSE(Answer(1, StepResult()));
  const PendingSteps::Decided decided = steps_.Decide();
  EXPECT_THAT(IdsOf(decided.answered), ElementsAre(2));
  EXPECT_THAT(decided.again, IsEmpty());
}

TEST_F(PendingStepsTest, ARefusalOfAnotherLayerDoesNotWait) {
  steps_.Add(1, SharedStep(kLayer));
  steps_.Add(2, Step(kOtherLayer));
  EXPECT_FALSE(Answer(2, Misplaced()));
}

TEST_F(PendingStepsTest, StepsInSharedMemoryMayBeSentAgainUntilTheyAreAnswered) {
  steps_.Add(1, SharedStep(kLayer));
  EXPECT_TRUE(steps_.may_send_again());
  EXPECT_FALSE(Answer(1, StepResult()));
  EXPECT_FALSE(steps_.may_send_again());
}

// Else a stream that is told to finish just then closes before the step is sent again.
TEST_F(PendingStepsTest, AStepWhoseAnswerIsBeingReadMayBeSentAgain) {
  steps_.Add(1, SharedStep(kLayer));
  std::optional<PendingStep> step = steps_.Take(1);
  EXPECT_TRUE(steps_.may_send_again());
  absl::StatusOr<StepResult> result = StepResult();
  EXPECT_FALSE(steps_.HoldBack(1, *step, /*is_lost=*/false, result));
  EXPECT_FALSE(steps_.may_send_again());
}

TEST_F(PendingStepsTest, TheEndLeavesAllThatIsNotAnswered) {
  steps_.Add(1, SharedStep(kLayer));
  steps_.Add(2, SharedStep(kLayer));
  steps_.Add(3, SharedStep(kOtherLayer));
  EXPECT_TRUE(Answer(2, Misplaced()));
  EXPECT_TRUE(Lose(3));
  const PendingSteps::Decided left = steps_.Clear();
  EXPECT_THAT(IdsOf(left.again), ElementsAre(1, 3));
  EXPECT_THAT(IdsOf(left.answered), ElementsAre(2));
  EXPECT_EQ(steps_.size(), 0u);
}

}  // namespace
}  // namespace attention::client::internal
