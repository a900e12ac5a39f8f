#include "server/domain/step_resolution.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <vector>

#include "server/base/error_reason.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;

// The checksums of the tokens from `position` on: each is its position.
std::vector<std::uint32_t> RowsFrom(std::int64_t position, std::int64_t num_tokens) {
  std::vector<std::uint32_t> checksums(static_cast<std::size_t>(num_tokens));
  std::iota(checksums.begin(), checksums.end(), static_cast<std::uint32_t>(position));
  return checksums;
}

// In a layer of these rows.
absl::StatusOr<ResolvedStep> Resolve(const SessionStep& step, const LayerTokens& layer) {
  return ResolveStep(step, layer, [&](std::int64_t position, std::span<const std::uint32_t> rows) {
    return std::ranges::equal(rows, RowsFrom(position, static_cast<std::int64_t>(rows.size())));
  });
}
absl::StatusOr<ResolvedStep> Resolve(const SessionStep& step, std::int64_t length) {
  return Resolve(step, LayerTokens{length});
}

SessionStep AppendAndAttend(std::int64_t expected_position, std::int64_t num_tokens) {
  SessionStep step;
  step.expected_position = expected_position;
  step.append = StepAppend{num_tokens, {}, {}, {}, {}, RowsFrom(expected_position, num_tokens)};
  AttentionTask& task = step.attend.emplace().task;
  task.q_len = num_tokens;
  task.params.num_q_heads = 1;
  return step;
}

TEST(StepResolutionTest, AppendsAtTheEnd) {
  const auto resolved = Resolve(AppendAndAttend(10, 3), 10);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_TRUE(resolved->is_append);
  EXPECT_FALSE(resolved->is_replay);
  EXPECT_EQ(resolved->append_position, 10);
  EXPECT_EQ(resolved->new_length, 13);
  EXPECT_EQ(resolved->kv_end, 13);
  EXPECT_EQ(resolved->first_query_position, 10);
}

TEST(StepResolutionTest, AStepAppliedBeforeAttendsAgainOverTheCacheAsItWas) {
  const auto resolved = Resolve(AppendAndAttend(10, 3), 20);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_FALSE(resolved->is_append);
  EXPECT_TRUE(resolved->is_replay);
  EXPECT_EQ(resolved->new_length, 20);
  EXPECT_EQ(resolved->kv_end, 13);
  EXPECT_EQ(resolved->first_query_position, 10);
}

TEST(StepResolutionTest, OtherRowsAtPositionsThatAreTakenAreNoReplay) {
  // Drafts were rejected, and other tokens follow the ninth.
  SessionStep step = AppendAndAttend(9, 3);
  step.append->checksums[1] = 77;
  const absl::Status refused = Resolve(step, 12).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetErrorDetail(refused)->reason, "POSITION_MISMATCH");
  EXPECT_EQ(GetErrorDetail(refused)->metadata.at("actual_position"), "12");
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("expected_position is 9, where the layer, which holds 12 tokens, holds "
                        "other rows than the step's: to put these in their place, call "
                        "TruncateSession with length 9 first"));
  EXPECT_TRUE(Resolve(step, 9).ok()) << "at the end any rows may come";
}

// 60 of 100 tokens were let go when there were 90.
constexpr LayerTokens kCompacted{100, 60, 90};

TEST(StepResolutionTest, ACompactedLayerCountsTheTokensThatItHolds) {
  const auto resolved = Resolve(AppendAndAttend(100, 3), kCompacted);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_EQ(resolved->append_position, 100) << "positions stay";
  EXPECT_EQ(resolved->new_length, 103);
  EXPECT_EQ(resolved->kv_end, 43);
  EXPECT_EQ(resolved->first_query_position, 40);
}

TEST(StepResolutionTest, ACompactedLayerAnswersAboutPositionsFromThereOn) {
  SessionStep step = AppendAndAttend(95, 3);
  step.attend->task.params.is_causal = true;
  const auto replay = Resolve(step, kCompacted);
  ASSERT_TRUE(replay.ok()) << replay.status();
  EXPECT_TRUE(replay->is_replay);
  EXPECT_EQ(replay->kv_end, 38);
  step.attend->kv_begin = 92;
  step.attend->kv_end = 97;
  const auto range = Resolve(step, kCompacted);
  ASSERT_TRUE(range.ok()) << range.status();
  EXPECT_EQ(range->kv_begin, 32);
  EXPECT_EQ(range->kv_end, 37);
  step.attend->task.params.window_left = 5;
  EXPECT_TRUE(Resolve(step, kCompacted).ok()) << "no query looks back beyond it";
}

TEST(StepResolutionTest, PositionsBeforeTheCompactionAreRefused) {
  const float slopes[] = {1};
  const auto refused = [](std::function<void(SessionStep&)> change, std::int64_t position) {
    SessionStep step = AppendAndAttend(position, 3);
    change(step);
    const absl::Status status = Resolve(step, kCompacted).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    const auto detail = GetErrorDetail(status);
    EXPECT_EQ(detail.value_or(ErrorDetail()).reason, "TOKENS_DROPPED") << status;
    EXPECT_EQ(detail.value_or(ErrorDetail()).metadata["compacted_length"], "90");
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](SessionStep&) {}, 80), HasSubstr("expected_position is 80"));
  EXPECT_THAT(refused([](SessionStep& step) { step.append.reset(); }, 80),
              HasSubstr("expected_position is 80"));
  EXPECT_THAT(refused([](SessionStep& step) { step.attend->kv_begin = 89; }, 100),
              HasSubstr("kv_begin is 89"));
  EXPECT_THAT(refused([](SessionStep& step) { step.attend->kv_end = 1; }, 100),
              HasSubstr("kv_end is 1"));
  EXPECT_THAT(refused([&](SessionStep& step) { step.attend->task.alibi_slopes = slopes; }, 100),
              HasSubstr("config.alibi_slopes"));
  EXPECT_THAT(refused([](SessionStep& step) { step.attend->task.params.window_left = 11; }, 100),
              HasSubstr("config.window_left is 11 for a query at position 100"));
  EXPECT_THAT(refused(
                  [](SessionStep& step) {
                    step.attend->task.params.is_causal = true;
                    step.attend->first_query_position = 88;
                  },
                  100),
              HasSubstr("the first query's position is 88"));
}

class PositionMismatchTest
    : public ::testing::TestWithParam<std::pair<std::int64_t, std::int64_t>> {};

TEST_P(PositionMismatchTest, IsRefusedWithTheActualPosition) {
  const auto [expected, length] = GetParam();
  const auto resolved = Resolve(AppendAndAttend(expected, 3), length);
  EXPECT_EQ(resolved.status().code(), absl::StatusCode::kFailedPrecondition);
  const auto detail = GetErrorDetail(resolved.status());
  ASSERT_TRUE(detail.has_value());
  EXPECT_EQ(detail->reason, "POSITION_MISMATCH");
  EXPECT_EQ(detail->metadata.at("actual_position"), std::to_string(length));
}

INSTANTIATE_TEST_SUITE_P(GapAndOverlap, PositionMismatchTest,
                         ::testing::Values(std::pair{11, 10}, std::pair{9, 10}, std::pair{8, 10}));

TEST(StepResolutionTest, AttendOnlyTakesAllThereIs) {
  SessionStep step = AppendAndAttend(0, 0);
  step.append.reset();
  step.expected_position.reset();
  step.attend->task.q_len = 2;
  const auto resolved = Resolve(step, 7);
  ASSERT_TRUE(resolved.ok());
  EXPECT_EQ(resolved->kv_end, 7);
  EXPECT_EQ(resolved->first_query_position, 5);
  EXPECT_FALSE(resolved->is_replay);
}

TEST(StepResolutionTest, AttendOnlyOverMoreThanThereIsIsRefused) {
  SessionStep step = AppendAndAttend(8, 0);
  step.append.reset();
  EXPECT_EQ(Resolve(step, 7).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(StepResolutionTest, ARangeKeepsPositionsOfTheWholeCache) {
  SessionStep step = AppendAndAttend(10, 1);
  step.attend->kv_begin = 4;
  step.attend->kv_end = 8;
  const auto resolved = Resolve(step, 10);
  ASSERT_TRUE(resolved.ok());
  EXPECT_EQ(resolved->kv_begin, 4);
  EXPECT_EQ(resolved->kv_end, 8);
  EXPECT_EQ(resolved->first_query_position, 10);
}

TEST(StepResolutionTest, RangesOutsideTheCacheNameTheField) {
  SessionStep step = AppendAndAttend(10, 1);
  step.attend->kv_end = 12;
  EXPECT_THAT(std::string(Resolve(step, 10).status().message()),
              HasSubstr("kv_end is 12, expected at most the attended length 11"));
  step.attend->kv_end = 5;
  step.attend->kv_begin = 6;
  EXPECT_THAT(std::string(Resolve(step, 10).status().message()), HasSubstr("kv_begin is 6"));
}

TEST(StepResolutionTest, AMaskOfAnotherLengthIsRefused) {
  SessionStep step = AppendAndAttend(10, 1);
  step.attend->mask_shape = BiasOrMaskShape{1, 1, 10};
  EXPECT_THAT(std::string(Resolve(step, 10).status().message()),
              HasSubstr("mask.shape ends with 10, expected 1 or 11, the keys from 0 to the "
                        "attended length"));
  step.attend->kv_end = 7;
  step.attend->kv_begin = 2;
  EXPECT_THAT(
      std::string(Resolve(step, 10).status().message()),
      HasSubstr("mask.shape ends with 10, expected 1 or 7, the keys from 0 to kv_end, those "
                "before kv_begin included"));
}

TEST(StepResolutionTest, AMaskOfOneKeyFitsEveryLength) {
  SessionStep step = AppendAndAttend(10, 1);
  step.attend->mask_shape = step.attend->bias_shape = BiasOrMaskShape{1, 1, 1};
  EXPECT_TRUE(Resolve(step, 10).ok());
}

TEST(StepResolutionTest, ColumnSumsBeyondTheBoundAreRefused) {
  SessionStep step = AppendAndAttend(10, 1);
  step.attend->max_column_sum_bytes = 40;
  EXPECT_THAT(std::string(Resolve(step, 10).status().message()),
              HasSubstr("returns.column_sums takes 11 rows of 4 bytes: the layer has grown"));
  EXPECT_TRUE(Resolve(step, 9).status().code() == absl::StatusCode::kFailedPrecondition);
  step.attend->max_column_sum_bytes = 44;
  EXPECT_TRUE(Resolve(step, 10).ok());
}

// --- Layers that have let go the tokens from 16 to 64

class WindowTest : public ::testing::Test {
 protected:
  static SessionStep Within(std::int64_t window_left, SessionStep step) {
    AttentionParams& params = step.attend->task.params;
    params.is_causal = true;
    params.window_left = window_left;
    params.sink_tokens = 4;
    return step;
  }
  // With a first query at that position.
  static SessionStep Attend(std::int64_t window_left, std::int64_t position, std::int64_t q_len) {
    SessionStep step = Within(window_left, AppendAndAttend(position, q_len));
    step.append.reset();
    step.expected_position.reset();
    step.attend->first_query_position = position;
    return step;
  }
  static void ExpectDropped(const SessionStep& step) {
    const absl::Status refused = Resolve(step, kWindow).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
    ASSERT_TRUE(HasReason(refused, ErrorReason::kWindowDropped)) << refused;
    EXPECT_EQ(GetErrorDetail(refused)->metadata.at("first_position"), "64");
  }
  static void ExpectAnswered(const SessionStep& step) {
    const absl::Status status = Resolve(step, kWindow).status();
    EXPECT_TRUE(status.ok()) << status;
  }

  static constexpr std::int64_t kLength = 100;
  static constexpr LayerTokens kWindow{kLength, 0, 0, 16, 64};
};

TEST_F(WindowTest, ARepeatedStepIsKnownByWhatIsStillThere) {
  ExpectAnswered(Within(0, AppendAndAttend(64, 10)));
  ExpectDropped(Within(0, AppendAndAttend(63, 10)));
  ExpectDropped(Within(0, AppendAndAttend(0, 1)));
}

TEST_F(WindowTest, AQueryMayNotSeeWhatHasBeenLetGo) {
  ExpectAnswered(Attend(20, 84, 16));
  ExpectDropped(Attend(20, 83, 17));
  ExpectDropped(Attend(20, 40, 1));
  ExpectDropped(Attend(20, 16, 1));
}

TEST_F(WindowTest, QueriesThatSeeSinksAloneAreAnswered) {
  ExpectAnswered(Attend(20, 0, 16));
  ExpectDropped(Attend(20, 0, 17));
  ExpectAnswered(Attend(20, -5, 1));
  SessionStep sinks = Attend(20, 50, 4);
  sinks.attend->kv_end = 16;
  ExpectAnswered(sinks);
  sinks.attend->kv_end = 31;
  ExpectDropped(sinks);
}

TEST_F(WindowTest, ARangeOfTheKeysIsWhatTheStepSees) {
  SessionStep step = Attend(20, 83, 17);
  step.attend->kv_begin = 64;
  ExpectAnswered(step);
}

}  // namespace
}  // namespace attention::server
