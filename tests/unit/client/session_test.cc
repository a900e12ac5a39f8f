#include "attention/client/session.h"

#include <gmock/gmock.h>

#include "attention/client/errors.h"
#include "attention/client/mocks/mock_connection.h"

namespace attention::client {
namespace {

using ::testing::_;
using ::testing::ElementsAre;
using ::testing::NiceMock;
using ::testing::Optional;

constexpr std::int64_t kHeadDim = 4;

SessionInfo EmptySession(int num_layers) {
  SessionInfo info;
  info.handle = {"server-0", 7, "secret"};
  info.geometry.num_layers = num_layers;
  return info;
}

// Behaves as a server's session does: appends, recognises replays, refuses gaps.
class FakeLayer {
 public:
  SessionStepResult Apply(const SessionStep& step) {
    SessionStepResult result;
    const std::int64_t rows = step.k.is_present() ? step.k.shape[0] : 0;
    const std::int64_t expected = step.expected_position.value_or(length_);
    if (rows > 0 && expected == length_) {
      length_ += rows;
    } else if (rows > 0 && expected + rows <= length_) {
      result.is_replay = true;
    } else if (rows > 0) {
      result.status = WithReason(absl::FailedPreconditionError("gap"), kPositionMismatch,
                                 {{std::string(kActualPosition), std::to_string(length_)}});
    }
    result.position = length_;
    return result;
  }

  std::int64_t length() const { return length_; }

 private:
  std::int64_t length_ = 0;
};

class SessionTest : public testing::Test {
 protected:
  SessionTest() {
    ON_CALL(*connection_, Step).WillByDefault([this](const StepRequest& request, auto&, auto done) {
      last_request_ = request;
      StepResult result;
      for (const SessionStep& step : request.steps) {
        result.results.push_back(layers_[static_cast<std::size_t>(step.layer)].Apply(step));
      }
      result.timing.batch_size = 1;
      done(std::move(result));
    });
  }

  static TensorView Rows(std::int64_t num_tokens) {
    static const std::vector<float> zeros(1024, 0.0f);
    const auto count = static_cast<std::size_t>(num_tokens * kHeadDim);
    return TensorView(std::span(zeros).first(count), {num_tokens, 1, kHeadDim});
  }

  std::shared_ptr<NiceMock<MockConnection>> connection_ =
      std::make_shared<NiceMock<MockConnection>>();
  std::vector<FakeLayer> layers_ = std::vector<FakeLayer>(2);
  StepRequest last_request_;
  Session session_{connection_, EmptySession(2)};
};

TEST_F(SessionTest, ADraftTreeGoesWithItsStep) {
  ASSERT_TRUE(
      session_.Step({.q = Rows(3), .k = Rows(3), .v = Rows(3), .parents = {-1, 0, 0}}).ok());
  EXPECT_THAT(last_request_.steps[0].parents, testing::ElementsAre(-1, 0, 0));
  EXPECT_EQ(session_.position(0), 3);
}

TEST_F(SessionTest, AppendsAdvanceTheirLayerAlone) {
  ASSERT_TRUE(session_.Step(0, Rows(5), Rows(5), Rows(5)).ok());
  EXPECT_EQ(session_.position(0), 5);
  EXPECT_EQ(session_.position(1), 0);
  const auto result = session_.Step(0, Rows(1), Rows(1), Rows(1), {.is_causal = true});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->position, 6);
  EXPECT_FALSE(result->is_replay);
  EXPECT_EQ(result->timing.batch_size, 1);
  EXPECT_EQ(session_.position(0), 6);
}

TEST_F(SessionTest, StepNamesSessionPositionAndWhatWasGiven) {
  ASSERT_TRUE(session_.Step(1, {}, Rows(3), Rows(3)).ok());
  LayerStep step = {.layer = 1, .q = Rows(2), .k = Rows(2), .v = Rows(2)};
  step.config = {.is_causal = true, .window_left = 7};
  step.returns.lse = true;
  step.first_query_position = 1;
  step.kv_begin = 1;
  step.kv_end = 4;
  ASSERT_TRUE(session_.Step(step).ok());
  ASSERT_EQ(last_request_.steps.size(), 1u);
  const SessionStep& sent = last_request_.steps[0];
  EXPECT_EQ(sent.handle, session_.handle());
  EXPECT_EQ(sent.layer, 1);
  EXPECT_THAT(sent.expected_position, Optional(3));
  EXPECT_EQ(sent.q.shape, Rows(2).shape);
  EXPECT_THAT(sent.config.window_left, Optional(7));
  EXPECT_TRUE(sent.returns.lse);
  EXPECT_THAT(sent.first_query_position, Optional(1));
  EXPECT_EQ(sent.kv_begin, 1);
  EXPECT_THAT(sent.kv_end, Optional(4));
}

TEST_F(SessionTest, AttendOnlyKeepsThePositionAndAttendsOverIt) {
  ASSERT_TRUE(session_.Step(0, {}, Rows(5), Rows(5)).ok());
  ASSERT_TRUE(session_.Step({.layer = 0, .q = Rows(2)}).ok());
  EXPECT_EQ(session_.position(0), 5);
  EXPECT_THAT(last_request_.steps[0].expected_position, Optional(5));
}

TEST_F(SessionTest, AFailedCallLeavesThePositionAndItsRepeatIsAReplay) {
  EXPECT_CALL(*connection_, Step)
      .WillOnce([this](const StepRequest& request, auto&, auto done) {
        layers_[0].Apply(request.steps[0]);  // applied, but the answer is lost
        done(absl::DeadlineExceededError("too late"));
      })
      .WillRepeatedly([this](const StepRequest& request, auto&, auto done) {
        done(StepResult{.results = {layers_[0].Apply(request.steps[0])}});
      });
  EXPECT_TRUE(absl::IsDeadlineExceeded(session_.Step(0, Rows(3), Rows(3), Rows(3)).status()));
  EXPECT_EQ(session_.position(0), 0);
  const auto repeated = session_.Step(0, Rows(3), Rows(3), Rows(3));
  ASSERT_TRUE(repeated.ok());
  EXPECT_TRUE(repeated->is_replay);
  EXPECT_EQ(session_.position(0), 3);
  EXPECT_EQ(layers_[0].length(), 3);
}

TEST_F(SessionTest, AMismatchIsAFailedPreconditionWithThePosition) {
  SessionInfo info = EmptySession(2);
  info.layer_lengths = {9, 0};
  Session ahead(connection_, info);
  const absl::Status status = ahead.Step(0, Rows(1), Rows(1), Rows(1)).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_EQ(ErrorReason(status), std::string(kPositionMismatch));
  EXPECT_THAT(ActualPosition(status), Optional(0));
  EXPECT_EQ(ahead.position(0), 9);
}

TEST_F(SessionTest, RefusesStepsThatMakeNoSense) {
  EXPECT_CALL(*connection_, Step).Times(0);
  const auto code = [this](const LayerStep& step) { return session_.Step(step).status().code(); };
  EXPECT_EQ(code({.layer = 2, .q = Rows(1)}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.layer = -1, .q = Rows(1)}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.layer = 0, .q = Rows(1), .k = Rows(1)}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.layer = 0}), absl::StatusCode::kInvalidArgument);
}

TEST_F(SessionTest, AnAnswerOfAnotherLengthIsInternal) {
  EXPECT_CALL(*connection_, Step).WillOnce([](auto&, auto&, auto done) { done(StepResult{}); });
  EXPECT_TRUE(absl::IsInternal(session_.Step(0, Rows(1), Rows(1), Rows(1)).status()));
}

TEST_F(SessionTest, MadeStepsTravelTogether) {
  Session other(connection_, EmptySession(2));
  StepRequest request;
  request.steps.push_back(*session_.MakeStep({.layer = 0, .k = Rows(2), .v = Rows(2)}));
  request.steps.push_back(*other.MakeStep({.layer = 1, .k = Rows(1), .v = Rows(1)}));
  SessionStepResult good, bad;
  bad.status = absl::ResourceExhaustedError("no pages");
  EXPECT_TRUE(session_.Accept(request.steps[0], good).ok());
  EXPECT_EQ(other.Accept(request.steps[1], bad), bad.status);
  EXPECT_EQ(session_.position(0), 2);
  EXPECT_EQ(other.position(1), 0);
}

TEST_F(SessionTest, AdvanceLetsAppendsOfOneLayerOverlap) {
  const SessionStep first = *session_.MakeStep({.layer = 0, .k = Rows(2), .v = Rows(2)});
  session_.Advance(first);
  const SessionStep second = *session_.MakeStep({.layer = 0, .k = Rows(1), .v = Rows(1)});
  session_.Advance(second);
  EXPECT_THAT(second.expected_position, Optional(2));
  EXPECT_EQ(session_.position(0), 3);
}

TEST_F(SessionTest, RefreshReadsThePositionsAnew) {
  SessionInfo info = EmptySession(2);
  info.layer_lengths = {4, 3};
  EXPECT_CALL(*connection_, GetSession(session_.handle(), _, _))
      .WillOnce([&](auto&, auto&, auto done) { done(info); })
      .WillOnce([](auto&, auto&, auto done) { done(absl::NotFoundError("expired")); });
  ASSERT_TRUE(session_.Refresh().ok());
  EXPECT_EQ(session_.position(0), 4);
  EXPECT_EQ(session_.position(1), 3);
  EXPECT_TRUE(absl::IsNotFound(session_.Refresh()));
  EXPECT_EQ(session_.position(0), 4);
}

TEST_F(SessionTest, AForkHasTheSessionsPositions) {
  SessionInfo copy = EmptySession(2);
  copy.handle.session_id = "copy";
  copy.layer_lengths = {4, 4};
  ForkSessionRequest sent;
  EXPECT_CALL(*connection_, ForkSession)
      .WillOnce([&](const ForkSessionRequest& request, auto&, auto done) {
        sent = request;
        done(std::vector<SessionInfo>{copy, copy});
      })
      .WillOnce([](auto&, auto&, auto done) { done(absl::FailedPreconditionError("too long")); });
  absl::StatusOr<std::vector<Session>> copies = session_.Fork({.length = 4, .num_copies = 2});
  ASSERT_TRUE(copies.ok()) << copies.status();
  EXPECT_EQ(sent.handle, session_.handle());
  EXPECT_THAT(sent.length, Optional(4));
  EXPECT_EQ(sent.num_copies, 2);
  ASSERT_EQ(copies->size(), 2u);
  EXPECT_EQ((*copies)[1].handle(), copy.handle);
  EXPECT_EQ((*copies)[1].position(1), 4);
  EXPECT_TRUE(absl::IsFailedPrecondition(session_.Fork().status()));
}

TEST_F(SessionTest, ATruncationSetsThePositionsBack) {
  ASSERT_TRUE(session_.Step(0, {}, Rows(9), Rows(9)).ok());
  SessionInfo info = EmptySession(2);
  info.layer_lengths = {5, 0};
  EXPECT_CALL(*connection_, TruncateSession)
      .WillOnce([&](const TruncateSessionRequest& request, auto&, auto done) {
        EXPECT_EQ(request.handle, session_.handle());
        EXPECT_EQ(request.length, 5);
        done(info);
      })
      .WillOnce([](auto&, auto&, auto done) { done(absl::UnavailableError("gone")); });
  EXPECT_TRUE(session_.Truncate(5).ok());
  EXPECT_EQ(session_.position(0), 5);
  EXPECT_TRUE(absl::IsUnavailable(session_.Truncate(2)));
  EXPECT_EQ(session_.position(0), 5);
}

TEST_F(SessionTest, TokensThatAreKeptAreCountedFromWhatTheSessionHolds) {
  ASSERT_TRUE(session_.Step(0, {}, Rows(9), Rows(9)).ok());
  SessionInfo info = EmptySession(2);
  info.layer_lengths = {9, 0};
  info.layer_tokens = {4, 0};
  std::vector<std::int64_t> seen;
  EXPECT_CALL(*connection_, KeepTokens)
      .Times(2)
      .WillRepeatedly([&](const KeepTokensRequest& request, auto&, auto done) {
        EXPECT_EQ(request.handle, session_.handle());
        seen.push_back(request.keep[0].num_tokens.value_or(-1));
        done(info);
      });
  EXPECT_TRUE(session_.Keep({{.layer = 0, .tokens = {0, 1, 2, 8}}}).ok());
  EXPECT_EQ(session_.position(0), 9) << "positions stay";
  EXPECT_EQ(session_.num_held(0), 4);
  EXPECT_TRUE(session_.Keep({{.layer = 0, .tokens = {0}}}).ok());
  EXPECT_THAT(seen, ElementsAre(9, 4));
  EXPECT_TRUE(absl::IsInvalidArgument(session_.Keep({{.layer = 2}})));
}

TEST_F(SessionTest, AcceptedDraftsAreTruncatedTo) {
  EXPECT_CALL(*connection_, TruncateSession)
      .WillOnce([&](const TruncateSessionRequest& request, auto&, auto done) {
        EXPECT_EQ(request.length, 5);
        EXPECT_EQ(request.accepted, (std::vector<int>{0, 3}));
        SessionInfo info = EmptySession(2);
        info.layer_lengths = {7, 7};
        done(info);
      });
  EXPECT_TRUE(session_.AcceptDrafts(5, {0, 3}).ok());
  EXPECT_EQ(session_.position(1), 7);
}

TEST_F(SessionTest, AReorderGivesEachBeamThePositionsOfItsSource) {
  std::vector<Session> beams;
  std::vector<SessionInfo> infos;
  for (const char* id : {"one", "two"}) {
    infos.push_back(EmptySession(2));
    infos.back().handle.session_id = id;
    beams.emplace_back(connection_, infos.back());
  }
  infos[0].layer_lengths = {8, 7};
  EXPECT_CALL(*connection_, ReorderSessions)
      .WillOnce([&](const ReorderSessionsRequest& request, auto&, auto done) {
        EXPECT_EQ(request.handles.size(), 2u);
        EXPECT_EQ(request.handles[1].session_id, "two");
        EXPECT_EQ(request.sources, (std::vector<int>{1, 1}));
        done(infos);
      })
      .WillOnce([](auto&, auto&, auto done) { done(std::vector<SessionInfo>()); });
  EXPECT_TRUE(Session::Reorder(beams, {1, 1}).ok());
  EXPECT_EQ(beams[0].position(1), 7);
  EXPECT_TRUE(absl::IsInternal(Session::Reorder(beams, {1, 1})));
  EXPECT_EQ(beams[0].position(0), 8);
  EXPECT_TRUE(absl::IsInvalidArgument(Session::Reorder({}, {})));
}

TEST_F(SessionTest, DeleteNamesTheSession) {
  EXPECT_CALL(*connection_, DeleteSession(session_.handle(), _, _))
      .WillOnce([](auto&, auto&, auto done) { done(absl::OkStatus()); });
  EXPECT_TRUE(session_.Delete().ok());
}

TEST_F(SessionTest, DestructionCallsNothing) {
  EXPECT_CALL(*connection_, DeleteSession).Times(0);
  { Session moved = std::move(session_); }
}

}  // namespace
}  // namespace attention::client
