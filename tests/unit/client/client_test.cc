// The Client on a mock: each method hands its arguments on and gives the outcome back, in all three
// forms.
#include "attention/client/client.h"

#include <gmock/gmock.h>

#include <tuple>

#include "attention/client/mocks/mock_connection.h"

namespace attention::client {
namespace {

using ::testing::_;
using ::testing::AllOf;
using ::testing::Field;
using ::testing::Return;

// An action that calls the last argument, the callback, with `value`.
template <typename Value>
auto Answer(Value value) {
  return [value](auto&&... arguments) {
    std::get<sizeof...(arguments) - 1>(std::tie(arguments...))(value);
  };
}

class ClientTest : public testing::Test {
 protected:
  std::shared_ptr<testing::StrictMock<MockConnection>> connection_ =
      std::make_shared<testing::StrictMock<MockConnection>>();
  Client client_{connection_};
  const CallOptions options_ = {.request_id = "r1"};
};

const auto kIsMyCall = Field(&CallOptions::request_id, "r1");

AttendResult SomeAttendResult() {
  AttendResult result;
  result.output = Tensor::FromFloats(std::vector<float>{1, 2}, {1, 1, 2});
  result.timing.batch_size = 3;
  return result;
}

SessionInfo SomeSession() {
  SessionInfo info;
  info.handle = {"server-0", 7, "secret"};
  info.geometry.num_layers = 2;
  info.layer_lengths = {5, 4};
  return info;
}

TEST_F(ClientTest, AttendInAllForms) {
  EXPECT_CALL(*connection_,
              Attend(Field(&AttendRequest::q_lens, testing::ElementsAre(4)), kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(SomeAttendResult()));
  const AttendRequest request = {.q_lens = {4}};
  EXPECT_EQ(client_.Attend(request, options_)->timing.batch_size, 3);
  EXPECT_EQ(client_.AttendFuture(request, options_).get()->timing.batch_size, 3);
  int batch_size = 0;
  client_.AttendAsync(request, options_,
                      [&](auto result) { batch_size = result->timing.batch_size; });
  EXPECT_EQ(batch_size, 3);
}

TEST_F(ClientTest, FailuresComeInAllForms) {
  const absl::Status failure = absl::UnavailableError("no server today");
  EXPECT_CALL(*connection_, Attend).Times(3).WillRepeatedly(Answer(failure));
  EXPECT_EQ(client_.Attend({}).status(), failure);
  EXPECT_EQ(client_.AttendFuture({}).get().status(), failure);
  absl::Status status;
  client_.AttendAsync({}, {}, [&](auto result) { status = result.status(); });
  EXPECT_EQ(status, failure);
}

TEST_F(ClientTest, AttendWithWeightsInAllForms) {
  EXPECT_CALL(*connection_, AttendWithWeights(_, kIsMyCall, _, _))
      .Times(3)
      .WillRepeatedly([](auto&, auto&, auto on_block, auto done) {
        on_block(WeightsBlock{.sequence = 1});
        done(SomeAttendResult());
      });
  int num_blocks = 0;
  const WeightsCallback count = [&](WeightsBlock block) { num_blocks += block.sequence; };
  EXPECT_TRUE(client_.AttendWithWeights({}, count, options_).ok());
  EXPECT_TRUE(client_.AttendWithWeightsFuture({}, count, options_).get().ok());
  bool is_ok = false;
  client_.AttendWithWeightsAsync({}, count, options_, [&](auto result) { is_ok = result.ok(); });
  EXPECT_TRUE(is_ok);
  EXPECT_EQ(num_blocks, 3);
}

TEST_F(ClientTest, CreateSessionInAllForms) {
  EXPECT_CALL(*connection_, CreateSession(Field(&SessionOptions::expected_tokens, 9), kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(SomeSession()));
  const SessionOptions request = {.expected_tokens = 9};
  EXPECT_EQ(client_.CreateSession(request, options_)->position(0), 5);
  EXPECT_EQ(client_.CreateSessionFuture(request, options_).get()->position(1), 4);
  std::string id;
  client_.CreateSessionAsync(request, options_,
                             [&](auto session) { id = session->handle().session_id; });
  EXPECT_EQ(id, "secret");
}

TEST_F(ClientTest, CreateSessionFails) {
  EXPECT_CALL(*connection_, CreateSession)
      .WillOnce(Answer(absl::ResourceExhaustedError("too many")));
  EXPECT_EQ(client_.CreateSession({}).status(), absl::ResourceExhaustedError("too many"));
}

TEST_F(ClientTest, GetSessionInAllForms) {
  EXPECT_CALL(*connection_, GetSession(SomeSession().handle, kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(SomeSession()));
  const SessionHandle handle = SomeSession().handle;
  EXPECT_EQ(client_.GetSession(handle, options_)->handle, handle);
  EXPECT_EQ(client_.GetSessionFuture(handle, options_).get()->handle, handle);
  SessionHandle got;
  client_.GetSessionAsync(handle, options_, [&](auto info) { got = info->handle; });
  EXPECT_EQ(got, handle);
}

TEST_F(ClientTest, ListSessionsInAllForms) {
  EXPECT_CALL(*connection_, ListSessions(AllOf(Field(&ListSessionsRequest::page_size, 5),
                                               Field(&ListSessionsRequest::page_token, "t")),
                                         kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(ListSessionsResult{.next_page_token = "u"}));
  const ListSessionsRequest request = {.page_size = 5, .page_token = "t"};
  EXPECT_EQ(client_.ListSessions(request, options_)->next_page_token, "u");
  EXPECT_EQ(client_.ListSessionsFuture(request, options_).get()->next_page_token, "u");
  std::string token;
  client_.ListSessionsAsync(request, options_, [&](auto page) { token = page->next_page_token; });
  EXPECT_EQ(token, "u");
}

TEST_F(ClientTest, DeleteSessionInAllForms) {
  const absl::Status failure = absl::PermissionDeniedError("not yours");
  const SessionHandle handle = SomeSession().handle;
  EXPECT_CALL(*connection_, DeleteSession(handle, kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(failure));
  EXPECT_EQ(client_.DeleteSession(handle, options_), failure);
  EXPECT_EQ(client_.DeleteSessionFuture(handle, options_).get(), failure);
  absl::Status status;
  client_.DeleteSessionAsync(handle, options_, [&](absl::Status s) { status = std::move(s); });
  EXPECT_EQ(status, failure);
}

TEST_F(ClientTest, ChangesOfSessionsInAllForms) {
  const absl::Status failure = absl::PermissionDeniedError("not yours");
  const SessionInfo info = SomeSession();
  EXPECT_CALL(*connection_, ForkSession(_, kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(std::vector<SessionInfo>{info, info}));
  EXPECT_EQ(client_.ForkSession({}, options_)->at(1).handle(), info.handle);
  EXPECT_EQ(client_.ForkSessionFuture({}, options_).get()->size(), 2u);
  std::size_t count = 0;
  client_.ForkSessionAsync({}, options_, [&](auto copies) { count = copies->size(); });
  EXPECT_EQ(count, 2u);
  EXPECT_CALL(*connection_, TruncateSession(_, kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(failure));
  EXPECT_EQ(client_.TruncateSession({}, options_).status(), failure);
  EXPECT_EQ(client_.TruncateSessionFuture({}, options_).get().status(), failure);
  absl::Status status;
  client_.TruncateSessionAsync({}, options_, [&](auto result) { status = result.status(); });
  EXPECT_EQ(status, failure);
  EXPECT_CALL(*connection_, KeepTokens(_, kIsMyCall, _)).Times(3).WillRepeatedly(Answer(failure));
  EXPECT_EQ(client_.KeepTokens({}, options_).status(), failure);
  EXPECT_EQ(client_.KeepTokensFuture({}, options_).get().status(), failure);
  client_.KeepTokensAsync({}, options_, [&](auto result) { status = result.status(); });
  EXPECT_EQ(status, failure);
  EXPECT_CALL(*connection_, GetKeysValues(_, kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(failure));
  EXPECT_EQ(client_.GetKeysValues({}, options_).status(), failure);
  EXPECT_EQ(client_.GetKeysValuesFuture({}, options_).get().status(), failure);
  client_.GetKeysValuesAsync({}, options_, [&](auto result) { status = result.status(); });
  EXPECT_EQ(status, failure);
  EXPECT_CALL(*connection_, ReorderSessions(_, kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(std::vector<SessionInfo>{info}));
  EXPECT_EQ(client_.ReorderSessions({}, options_)->size(), 1u);
  EXPECT_EQ(client_.ReorderSessionsFuture({}, options_).get()->size(), 1u);
  client_.ReorderSessionsAsync({}, options_, [&](auto infos) { count = infos->size(); });
  EXPECT_EQ(count, 1u);
  EXPECT_CALL(*connection_, AttachSession(info.handle, kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(info));
  EXPECT_EQ(client_.AttachSession(info.handle, options_)->position(0), 5);
  EXPECT_EQ(client_.AttachSessionFuture(info.handle, options_).get()->handle(), info.handle);
  client_.AttachSessionAsync(info.handle, options_,
                             [&](auto session) { status = session.status(); });
  EXPECT_TRUE(status.ok());
}

TEST_F(ClientTest, StepInAllForms) {
  EXPECT_CALL(*connection_, Step(Field(&StepRequest::steps, testing::SizeIs(1)), kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(StepResult{.results = std::vector<SessionStepResult>(1)}));
  const StepRequest request = {.steps = std::vector<SessionStep>(1)};
  EXPECT_EQ(client_.Step(request, options_)->results.size(), 1u);
  EXPECT_EQ(client_.StepFuture(request, options_).get()->results.size(), 1u);
  std::size_t count = 0;
  client_.StepAsync(request, options_, [&](auto result) { count = result->results.size(); });
  EXPECT_EQ(count, 1u);
}

TEST_F(ClientTest, GetServerInfoInAllForms) {
  EXPECT_CALL(*connection_, GetServerInfo(kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(ServerInfo{.version = "1.2"}));
  EXPECT_EQ(client_.GetServerInfo(options_)->version, "1.2");
  EXPECT_EQ(client_.GetServerInfoFuture(options_).get()->version, "1.2");
  std::string version;
  client_.GetServerInfoAsync(options_, [&](auto info) { version = info->version; });
  EXPECT_EQ(version, "1.2");
}

TEST_F(ClientTest, ExplainInAllForms) {
  EXPECT_CALL(*connection_, Explain(Field(&ExplainRequest::q_len, 8), kIsMyCall, _))
      .Times(3)
      .WillRepeatedly(Answer(ExplainResult{.kernel = "prefill"}));
  const ExplainRequest request = {.q_len = 8};
  EXPECT_EQ(client_.Explain(request, options_)->kernel, "prefill");
  EXPECT_EQ(client_.ExplainFuture(request, options_).get()->kernel, "prefill");
  std::string kernel;
  client_.ExplainAsync(request, options_, [&](auto result) { kernel = result->kernel; });
  EXPECT_EQ(kernel, "prefill");
}

TEST_F(ClientTest, WaitUntilReadyCountsFromNow) {
  const absl::Time before = absl::Now();
  absl::Time deadline;
  EXPECT_CALL(*connection_, WaitUntilReady).WillOnce([&](absl::Time time) {
    deadline = time;
    return absl::DeadlineExceededError("not yet");
  });
  EXPECT_TRUE(absl::IsDeadlineExceeded(client_.WaitUntilReady(absl::Hours(1))));
  EXPECT_GE(deadline, before + absl::Hours(1));
  EXPECT_LE(deadline, absl::Now() + absl::Hours(1));
}

TEST_F(ClientTest, StepStreamFormsShareOneImplementation) {
  auto stream = std::make_unique<MockStepStream>();
  EXPECT_CALL(*stream, StepAsync).Times(2).WillRepeatedly([](auto&, auto done) {
    done(StepResult{.timing = {.batch_size = 4}});
  });
  EXPECT_CALL(*connection_, OpenStepStream(Field(&StepStreamOptions::server_name, "w")))
      .WillOnce(Return(testing::ByMove(std::move(stream))));
  const auto opened = client_.OpenStepStream({.server_name = "w"});
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ((*opened)->Step({})->timing.batch_size, 4);
  EXPECT_EQ((*opened)->StepFuture({}).get()->timing.batch_size, 4);
}

TEST_F(ClientTest, OpenSessionMakesNoCall) {
  Session session = client_.OpenSession(SomeSession());
  EXPECT_EQ(session.position(0), 5);
  EXPECT_EQ(session.handle(), SomeSession().handle);
}

}  // namespace
}  // namespace attention::client
