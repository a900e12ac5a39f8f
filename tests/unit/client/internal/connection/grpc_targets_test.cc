// One client of several servers: turns, retries on the next, and finding a session's owner.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>

#include "attention/client/errors.h"
#include "tests/unit/client/fake_server.h"

namespace attention::client {
namespace {

// A server that is called `name` and counts what reaches it.
struct Worker {
  explicit Worker(const std::string& name) : name(name) {
    server.on_attend = [this](auto*, auto&, auto*) {
      ++num_attends;
      return is_down ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "down") : grpc::Status::OK;
    };
    server.on_get_server_info = [this](auto*, auto&, auto* response) {
      ++num_infos;
      if (is_down) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "down");
      response->set_server_name(this->name);
      return grpc::Status::OK;
    };
    server.on_create_session = [this](auto*, auto&, auto* response) {
      v1::Session* session = response->mutable_session();
      session->mutable_handle()->set_server_name(this->name);
      session->mutable_geometry()->set_kv_dtype(v1::DTYPE_FLOAT32);
      return grpc::Status::OK;
    };
    server.on_delete_session = [this](auto*, auto& request, auto*) {
      if (request.handle().server_name() != this->name) {
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
  EXPECT_NE(first->handle().server_name, second->handle().server_name);
  EXPECT_TRUE(first->Delete().ok());
  EXPECT_TRUE(second->Delete().ok());
  EXPECT_EQ(a_.num_infos + b_.num_infos, 0);
}

TEST_F(GrpcTargetsTest, AnUnknownOwnerIsLookedForOnce) {
  EXPECT_TRUE(client_->DeleteSession({.server_name = "b"}).ok());
  EXPECT_TRUE(client_->DeleteSession({.server_name = "b"}).ok());
  EXPECT_EQ(b_.num_infos, 1);
}

TEST_F(GrpcTargetsTest, TheOwnerIsFoundThoughAnotherIsDown) {
  a_.is_down = true;
  EXPECT_TRUE(client_->DeleteSession({.server_name = "b"}).ok());
}

TEST_F(GrpcTargetsTest, AnOwnerThatMayBeDownIsUnavailable) {
  a_.is_down = true;
  EXPECT_TRUE(absl::IsUnavailable(client_->DeleteSession({.server_name = "a"})));
}

TEST_F(GrpcTargetsTest, AnOwnerThatIsNoneOfThemIsTheServersToTell) {
  const absl::Status status = client_->DeleteSession({.server_name = "c"});
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
  EXPECT_EQ((*client_->OpenStepStream({.server_name = "b"}))->Step({})->timing.batch_size, 2);
  EXPECT_EQ((*client_->OpenStepStream({.server_name = "a"}))->Step({})->timing.batch_size, 1);
}

TEST_F(GrpcTargetsTest, AStreamWithoutAWorkerGoesToItsTarget) {
  a_.stream_mark = 1;
  b_.stream_mark = 2;
  EXPECT_EQ((*client_->OpenStepStream({.target = 1}))->Step({})->timing.batch_size, 2);
  EXPECT_EQ((*client_->OpenStepStream())->Step({})->timing.batch_size, 1);
  EXPECT_THAT(std::string(client_->OpenStepStream({.target = 2}).status().message()),
              testing::HasSubstr("target is 2, expected 0 to 1"));
}

TEST_F(GrpcTargetsTest, ReadyMeansAll) {
  EXPECT_TRUE(client_->WaitUntilReady(absl::Seconds(10)).ok());
}

// Answers what comes first on each connection with these bytes, if it begins as it likes, and hangs
// up.
class OneAnswer {
 public:
  explicit OneAnswer(std::string answer, const std::string& liked = "")
      : answer_(std::move(answer)), liked_(liked) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
    thread_ = std::thread([this] { Serve(); });
  }
  ~OneAnswer() {
    shutdown(fd_, SHUT_RDWR);
    thread_.join();
    close(fd_);
  }

  const std::string& address() const { return address_; }

 private:
  void Serve() {
    for (int fd = accept(fd_, nullptr, nullptr); fd >= 0; fd = accept(fd_, nullptr, nullptr)) {
      char first[256];
      const ssize_t size = recv(fd, first, sizeof(first), 0);
      if (size > 0 && std::string(first, static_cast<std::size_t>(size)).starts_with(liked_)) {
        send(fd, answer_.data(), answer_.size(), 0);
      }
      close(fd);
    }
  }

  const std::string answer_;
  const std::string liked_;
  std::string address_;
  int fd_ = -1;
  std::thread thread_;
};

std::string WhyNotReady(const std::string& address) {
  const auto client = Client::Connect({.targets = {address}});
  EXPECT_TRUE(client.ok()) << client.status();
  const absl::Status status = (*client)->WaitUntilReady(absl::Milliseconds(300));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  return std::string(status.message());
}

TEST(WaitUntilReadyTest, NamesWhatIsInTheWay) {
  using testing::HasSubstr;
  std::string refused;
  { refused = OneAnswer("").address(); }
  EXPECT_THAT(WhyNotReady(refused), HasSubstr("connection refused by " + refused));
  EXPECT_THAT(WhyNotReady("nobody.invalid:7070"),
              HasSubstr("host 'nobody.invalid' cannot be resolved: "));
  EXPECT_THAT(WhyNotReady("unix:/no/such/socket"),
              HasSubstr("cannot connect to unix:/no/such/socket: No such file or directory"));
  const OneAnswer tls("\x15\x03\x03");
  EXPECT_THAT(WhyNotReady(tls.address()), HasSubstr(tls.address() + " speaks TLS"));
  const OneAnswer strict("\x16\x03\x03", /*liked=*/"\x16\x03\x01");
  EXPECT_THAT(WhyNotReady(strict.address()), HasSubstr(strict.address() + " speaks TLS"));
  const OneAnswer web("HTTP/1.1 400 Bad Request\r\n\r\n");
  EXPECT_THAT(WhyNotReady(web.address()), HasSubstr("speaks HTTP/1, expected the port for gRPC"));
  const OneAnswer mute("");
  EXPECT_THAT(WhyNotReady(mute.address()), HasSubstr("takes connections and does not answer"));
}

}  // namespace
}  // namespace attention::client
