// Writers of a session through the wire, and how sessions are found: AttachSession, labels,
// filters.
#include <atomic>
#include <thread>
#include <vector>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr int kFailedPrecondition = grpc::FAILED_PRECONDITION;

grpc::Status Attach(ServerClient& server, const v1::SessionHandle& handle, v1::Session* session,
                    const std::string& tenant = "") {
  v1::AttachSessionRequest request;
  *request.mutable_handle() = handle;
  v1::AttachSessionResponse response;
  grpc::Status status =
      server.sessions().AttachSession(NewContext(tenant).get(), request, &response);
  if (session != nullptr) *session = response.session();
  return status;
}

v1::Session MustAttach(ServerClient& server, const v1::SessionHandle& handle) {
  v1::Session session;
  const grpc::Status status = Attach(server, handle, &session);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return session;
}

class SessionAttachTest : public ServiceFixture {
 protected:
  static v1::SessionHandle Filled(std::int64_t length) {
    const v1::SessionHandle handle = MustCreate(shared_server()).handle();
    MustStep(shared_server(), MakeStep(prompt(), handle, 0, length));
    return handle;
  }
  static const v1::AttendRequest& prompt() {
    static const auto* prompt = new v1::AttendRequest(MakePrompt(40));
    return *prompt;
  }
};

TEST_F(SessionAttachTest, TheNewWriterGoesOnAndTheOldOneIsFenced) {
  const v1::SessionHandle old = Filled(9);
  const v1::Session session = MustAttach(shared_server(), old);
  EXPECT_EQ(session.committed_length(), 9);
  EXPECT_GT(session.handle().writer(), old.writer());
  EXPECT_EQ(session.handle().session_id(), old.session_id());

  for (const v1::SessionStep& step :
       {MakeStep(prompt(), old, 9, 12), MakeAppend(prompt(), old, 9, 12),
        MakeAttend(prompt(), old, 0, 9), MakeStep(prompt(), old, 0, 9)}) {
    const v1::SessionStepResult result = RunStep(shared_server(), step);
    EXPECT_EQ(result.error().code(), kFailedPrecondition);
    EXPECT_EQ(result.error().reason(), "FENCED");
  }
  EXPECT_EQ(MustGet(shared_server(), old).committed_length(), 9) << "reading is no harm";
  MustStep(shared_server(), MakeStep(prompt(), session.handle(), 9, 12));
  EXPECT_EQ(MustGet(shared_server(), session.handle()).committed_length(), 12);
}

TEST_F(SessionAttachTest, AFencedWriterChangesNothing) {
  const v1::SessionHandle old = Filled(9);
  const v1::SessionHandle handle = MustAttach(shared_server(), old).handle();
  v1::TruncateSessionRequest truncate;
  *truncate.mutable_handle() = old;
  truncate.set_length(3);
  v1::TruncateSessionResponse truncated;
  EXPECT_THAT(shared_server().sessions().TruncateSession(NewContext().get(), truncate, &truncated),
              FailsBecause(kFailedPrecondition, "FENCED"));
  v1::ReorderSessionsRequest reorder;
  *reorder.add_handles() = old;
  *reorder.add_handles() = Filled(4);
  reorder.add_sources(1);
  reorder.add_sources(1);
  v1::ReorderSessionsResponse reordered;
  EXPECT_THAT(shared_server().sessions().ReorderSessions(NewContext().get(), reorder, &reordered),
              FailsBecause(kFailedPrecondition, "FENCED"));
  EXPECT_THAT(Delete(shared_server(), old), FailsBecause(kFailedPrecondition, "FENCED"));
  EXPECT_EQ(MustGet(shared_server(), handle).committed_length(), 9);
  EXPECT_TRUE(Delete(shared_server(), handle).ok());
}

TEST_F(SessionAttachTest, EachAttachFencesTheOneBefore) {
  const v1::SessionHandle created = Filled(9);
  const v1::SessionHandle first = MustAttach(shared_server(), created).handle();
  // Whoever asks may do so with any handle of the session: it proves that it knows it.
  const v1::SessionHandle second = MustAttach(shared_server(), created).handle();
  EXPECT_GT(second.writer(), first.writer());
  EXPECT_EQ(RunStep(shared_server(), MakeStep(prompt(), first, 9, 10)).error().reason(), "FENCED");
  MustStep(shared_server(), MakeStep(prompt(), second, 9, 10));
}

TEST_F(SessionAttachTest, OnlyTheTenantMayAttach) {
  const v1::SessionHandle handle = Filled(9);
  EXPECT_THAT(Attach(shared_server(), handle, nullptr, "somebody"), FailsWith(grpc::NOT_FOUND, ""));
  MustStep(shared_server(), MakeStep(prompt(), handle, 9, 10));
}

TEST_F(SessionAttachTest, CopiesHaveWritersOfTheirOwn) {
  const v1::SessionHandle source = MustAttach(shared_server(), Filled(9)).handle();
  v1::ForkSessionRequest request;
  *request.mutable_handle() = source;
  v1::ForkSessionResponse response;
  ASSERT_TRUE(shared_server().sessions().ForkSession(NewContext().get(), request, &response).ok());
  const v1::SessionHandle copy = response.sessions(0).handle();
  MustAttach(shared_server(), source);
  MustStep(shared_server(), MakeStep(prompt(), copy, 9, 10));
}

// The lengths in the answer are final: nothing of the old writer comes after it.
TEST_F(SessionAttachTest, NothingOfTheOldWriterComesAfterTheAnswer) {
  for (int round = 0; round < 8; ++round) {
    const v1::SessionHandle old = MustCreate(shared_server()).handle();
    std::atomic<bool> is_fenced{false};
    std::thread writer([&] {
      for (int token = 0; token < 40 && !is_fenced; ++token) {
        const v1::SessionStepResult result =
            RunStep(shared_server(), MakeStep(prompt(), old, token, token + 1));
        if (result.error().reason() == "FENCED") is_fenced = true;
      }
    });
    while (MustGet(shared_server(), old).committed_length() < 3 + round) std::this_thread::yield();
    const v1::Session session = MustAttach(shared_server(), old);
    writer.join();
    EXPECT_EQ(MustGet(shared_server(), session.handle()).committed_length(),
              session.committed_length());
    EXPECT_TRUE(is_fenced || session.committed_length() == 40);
    // The rows that are there are those of the old writer, and the rest follows.
    for (std::int64_t token = session.committed_length(); token < 40; ++token) {
      MustStep(shared_server(), MakeStep(prompt(), session.handle(), token, token + 1));
    }
    const v1::SessionStepResult all =
        MustStep(shared_server(), MakeStep(prompt(), session.handle(), 0, 40));
    EXPECT_TRUE(all.is_replay());
    EXPECT_EQ(FindMismatch(prompt(), AsResponse(all)), "");
  }
}

// A stream's end must not take the session from who has attached to it meanwhile.
TEST_F(SessionAttachTest, AnAttachedSessionOutlivesTheStreamThatMadeIt) {
  const auto context = NewContext();
  const auto stream = shared_server().sessions().StepStream(context.get());
  v1::StepStreamRequest request;
  *request.mutable_create_session() = MakeCreateRequest({});
  ASSERT_TRUE(stream->Write(request));
  v1::StepStreamResponse response;
  ASSERT_TRUE(stream->Read(&response));
  const v1::Session session =
      MustAttach(shared_server(), response.created_session().session().handle());
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
  MustStep(shared_server(), MakeStep(prompt(), session.handle(), 0, 5));
}

// --- Labels and filters ---

class SessionFilterTest : public ServiceFixture {
 protected:
  static std::string MustCreateWith(const std::string& name,
                                    const std::map<std::string, std::string>& labels) {
    v1::CreateSessionRequest request = MakeCreateRequest({});
    request.set_name(name);
    request.mutable_labels()->insert(labels.begin(), labels.end());
    v1::CreateSessionResponse response;
    const grpc::Status status =
        shared_server().sessions().CreateSession(NewContext(kTenant).get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.session().labels_size(), static_cast<int>(labels.size()));
    return response.session().handle().session_id();
  }
  static std::vector<std::string> Names(const v1::ListSessionsRequest& request) {
    v1::ListSessionsResponse response;
    EXPECT_TRUE(shared_server()
                    .sessions()
                    .ListSessions(NewContext(kTenant).get(), request, &response)
                    .ok());
    std::vector<std::string> names;
    for (const v1::Session& session : response.sessions()) names.push_back(session.name());
    return names;
  }
  static v1::ListSessionsRequest WithLabels(const std::map<std::string, std::string>& labels) {
    v1::ListSessionsRequest request;
    request.mutable_labels()->insert(labels.begin(), labels.end());
    return request;
  }
  static grpc::Status CreateWith(const std::map<std::string, std::string>& labels) {
    v1::CreateSessionRequest request = MakeCreateRequest({});
    request.mutable_labels()->insert(labels.begin(), labels.end());
    v1::CreateSessionResponse response;
    return shared_server().sessions().CreateSession(NewContext(kTenant).get(), request, &response);
  }

  static constexpr char kTenant[] = "filters";
};

TEST_F(SessionFilterTest, SessionsAreFoundByNameLabelsAndState) {
  MustCreateWith("chat-1", {{"model", "llama"}, {"user", "ann"}});
  MustCreateWith("chat-2", {{"model", "llama"}, {"user", "ben"}});
  MustCreateWith("batch", {{"model", "gemma"}});
  EXPECT_THAT(Names({}), UnorderedElementsAre("chat-1", "chat-2", "batch"));
  EXPECT_THAT(Names(WithLabels({{"model", "llama"}})), UnorderedElementsAre("chat-1", "chat-2"));
  EXPECT_THAT(Names(WithLabels({{"model", "llama"}, {"user", "ben"}})), ElementsAre("chat-2"));
  EXPECT_THAT(Names(WithLabels({{"user", ""}})), IsEmpty()) << "a value is compared as a whole";
  v1::ListSessionsRequest request;
  request.set_name("batch");
  EXPECT_THAT(Names(request), ElementsAre("batch"));
  request.set_state(v1::SESSION_STATE_BUSY);
  EXPECT_THAT(Names(request), IsEmpty());
  request.set_state(v1::SESSION_STATE_IDLE);
  EXPECT_THAT(Names(request), ElementsAre("batch"));
}

TEST_F(SessionFilterTest, WhatCannotBeIsRefused) {
  std::map<std::string, std::string> many;
  for (int i = 0; i < 17; ++i) many[std::to_string(i)] = "";
  EXPECT_THAT(CreateWith(many),
              FailsWith(grpc::INVALID_ARGUMENT, "labels has 17 entries, expected at most 16"));
  EXPECT_THAT(CreateWith({{"", "x"}}),
              FailsWith(grpc::INVALID_ARGUMENT, "labels has a key of 0 bytes, expected 1 to 64"));
  EXPECT_THAT(CreateWith({{"user", std::string(129, 'x')}}),
              FailsWith(grpc::INVALID_ARGUMENT, "labels['user'] has 129 bytes, expected at most "));
  v1::ListSessionsRequest request;
  request.set_state(static_cast<v1::SessionState>(9));
  v1::ListSessionsResponse response;
  EXPECT_THAT(
      shared_server().sessions().ListSessions(NewContext(kTenant).get(), request, &response),
      FailsWith(grpc::INVALID_ARGUMENT, "state is 9, expected one of SessionState's"));
}

}  // namespace
}  // namespace attention::testing
