// One client of several servers: turns, retries on the next, and finding a session's owner.
#include <gmock/gmock.h>

#include <atomic>
#include <set>

#include "client/errors.h"
#include "tests/unit/client/fake_server.h"

namespace attention::client {
namespace {

// A server that is the worker `name` and counts what reaches it.
struct Worker {
  explicit Worker(const std::string& name) : name(name) {
    server.on_attend = [this](auto*, auto&, auto*) {
      ++num_attends;
      return is_down ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "down") : grpc::Status::OK;
    };
    server.on_get_server_info = [this](auto*, auto&, auto* response) {
      ++num_infos;
      if (is_down) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "down");
      response->set_worker(this->name);
      return grpc::Status::OK;
    };
    server.on_create_session = [this](auto*, auto&, auto* response) {
      v1::Session* session = response->mutable_session();
      session->mutable_handle()->set_worker(this->name);
      session->mutable_geometry()->set_kv_dtype(v1::DTYPE_FLOAT32);
      return grpc::Status::OK;
    };
    server.on_delete_session = [this](auto*, auto& request, auto*) {
      if (request.handle().worker() != this->name) {
        return ServerError(grpc::StatusCode::FAILED_PRECONDITION, "moved", "SESSION_MOVED");
      }
      return grpc::Status::OK;
    };
    server.on_list_sessions = [this](auto*, auto& request, auto* response) {
      v1::Session* session = response->add_sessions();
      session->mutable_handle()->set_session_id(this->name + request.page_token());
      session->mutable_geometry()->set_kv_dtype(v1::DTYPE_FLOAT32);
      if (request.page_token().empty()) response->set_next_page_token("2");
      return grpc::Status::OK;
    };
    server.on_step_stream = [this](auto*, auto* stream) {
      v1::StepStreamRequest request;
      while (stream->Read(&request)) {
        v1::StepStreamResponse response;
        response.set_request_id(request.request_id());
        response.mutable_response()->mutable_timing()->set_batch_size(stream_mark);
        stream->Write(response);
      }
      return grpc::Status::OK;
    };
  }

  const std::string name;
  int stream_mark = 0;
  std::atomic<int> num_attends = 0, num_infos = 0;
  std::atomic<bool> is_down = false;
  FakeServer server;
};

class GrpcTargetsTest : public testing::Test {
 protected:
  std::shared_ptr<Client> Connect() {
    ClientOptions options;
    options.targets = {a_.server.address(), b_.server.address()};
    options.retry_policy.initial_backoff = absl::Milliseconds(1);
    return *Client::Connect(options);
  }

  Worker a_{"a"}, b_{"b"};
  const std::shared_ptr<Client> client_ = Connect();
};

TEST_F(GrpcTargetsTest, StatelessCallsTakeTurns) {
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(client_->Attend({}).ok());
  EXPECT_EQ(a_.num_attends, 3);
  EXPECT_EQ(b_.num_attends, 3);
}

TEST_F(GrpcTargetsTest, ARetryGoesToTheNext) {
  a_.is_down = true;
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(client_->Attend({}).ok());
  EXPECT_EQ(b_.num_attends, 6);
}

TEST_F(GrpcTargetsTest, ACreatedSessionsOwnerIsRemembered) {
  auto first = client_->CreateSession({}), second = client_->CreateSession({});
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->handle().worker, second->handle().worker);
  EXPECT_TRUE(first->Delete().ok());
  EXPECT_TRUE(second->Delete().ok());
  EXPECT_EQ(a_.num_infos + b_.num_infos, 0);
}

TEST_F(GrpcTargetsTest, AnUnknownOwnerIsLookedForOnce) {
  EXPECT_TRUE(client_->DeleteSession({.worker = "b"}).ok());
  EXPECT_TRUE(client_->DeleteSession({.worker = "b"}).ok());
  EXPECT_EQ(b_.num_infos, 1);
}

TEST_F(GrpcTargetsTest, TheOwnerIsFoundThoughAnotherIsDown) {
  a_.is_down = true;
  EXPECT_TRUE(client_->DeleteSession({.worker = "b"}).ok());
}

TEST_F(GrpcTargetsTest, AnOwnerThatMayBeDownIsUnavailable) {
  a_.is_down = true;
  EXPECT_TRUE(absl::IsUnavailable(client_->DeleteSession({.worker = "a"})));
}

TEST_F(GrpcTargetsTest, AnOwnerThatIsNoneOfThemIsTheServersToTell) {
  const absl::Status status = client_->DeleteSession({.worker = "c"});
  EXPECT_EQ(ErrorReason(status), std::string(kSessionMoved));
}

TEST_F(GrpcTargetsTest, ListingGoesThroughAllTargets) {
  std::vector<std::string> ids;
  ListSessionsRequest request;
  do {
    const auto page = client_->ListSessions(request);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const SessionInfo& session : page->sessions) ids.push_back(session.handle.session_id);
    request.page_token = page->next_page_token;
  } while (!request.page_token.empty());
  EXPECT_THAT(ids, testing::ElementsAre("a", "a2", "b", "b2"));
  EXPECT_TRUE(absl::IsInvalidArgument(client_->ListSessions({.page_token = "?"}).status()));
}

TEST_F(GrpcTargetsTest, AStreamGoesToTheWorkerItNames) {
  a_.stream_mark = 1;
  b_.stream_mark = 2;
  EXPECT_EQ((*client_->OpenStepStream({.worker = "b"}))->Step({})->timing.batch_size, 2);
  EXPECT_EQ((*client_->OpenStepStream({.worker = "a"}))->Step({})->timing.batch_size, 1);
}

TEST_F(GrpcTargetsTest, ReadyMeansAll) {
  EXPECT_TRUE(client_->WaitUntilReady(absl::Seconds(10)).ok());
}

}  // namespace
}  // namespace attention::client
