// Several workers in one server: sessions stay with theirs, and one that fails leaves the others
// alone.
#include <atomic>
#include <set>

#include "tests/support/faulty_backend.h"
#include "tests/support/layer_driver.h"
#include "tests/support/session_driver.h"
#include "tests/support/wire_tensor.h"

namespace attention::testing {
namespace {

constexpr std::int64_t kLength = 40;

void WithTwoWorkers(server::ServerConfig& config) {
  config.workers = 2;
  config.threads = 2;  // also where there is one CPU
}

// As many sessions as steps of one request.
std::vector<v1::SessionHandle> MustCreateMany(ServerClient& server, int count) {
  std::vector<v1::SessionHandle> handles;
  for (int i = 0; i < count; ++i) handles.push_back(MustCreate(server).handle());
  return handles;
}

v1::GetServerInfoResponse InfoOf(ServerClient& server) {
  v1::GetServerInfoResponse info;
  const auto context = NewContext();
  EXPECT_TRUE(server.info().GetServerInfo(context.get(), {}, &info).ok());
  return info;
}

TEST(WorkerPoolTest, SessionsAreSpreadAndTheirStepsShareARequest) {
  constexpr int kSessions = 8;
  TestServer server(WithTwoWorkers);
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const std::vector<v1::SessionHandle> handles = MustCreateMany(server, kSessions);
  v1::StepRequest request;
  for (const v1::SessionHandle& handle : handles) {
    *request.add_steps() = MakeStep(prompt, handle, 0, kLength);
  }
  v1::StepResponse response;
  const auto context = NewContext();
  ASSERT_TRUE(server.sessions().Step(context.get(), request, &response).ok());
  ASSERT_EQ(response.results_size(), kSessions);
  for (const v1::SessionStepResult& result : response.results()) {
    ASSERT_FALSE(result.has_error()) << result.error().message();
    EXPECT_EQ(FindMismatch(prompt, AsResponse(result)), "");
    EXPECT_TRUE(SameAnswer(AsResponse(result), AsResponse(response.results(0))));
  }
  const v1::GetServerInfoResponse info = InfoOf(server);
  int num_used = 0;
  std::int64_t capacity = 0;
  for (const v1::Device& device : info.devices()) {
    if (!device.is_used()) continue;  // a GPU that this server does not compute on
    ++num_used;
    EXPECT_EQ(device.num_threads(), 1);
    EXPECT_LT(device.kv_free_bytes(), device.kv_capacity_bytes()) << "it holds sessions";
    capacity += device.kv_capacity_bytes();
  }
  EXPECT_EQ(num_used, 2);
  EXPECT_EQ(info.limits().kv_capacity_bytes(), capacity);
}

TEST(WorkerPoolTest, BitsDoNotDependOnTheNumberOfWorkers) {
  TestServer one;
  TestServer two(WithTwoWorkers);
  const v1::AttendRequest request = MakePrompt(200, v1::DTYPE_BFLOAT16);
  EXPECT_TRUE(SameAnswer(MustAttend(one, request), MustAttend(two, request)));
}

TEST(WorkerPoolTest, AReplayIsKnownAcrossTheCut) {
  TestServer server(WithTwoWorkers);
  const v1::AttendRequest prompt = MakePrompt(kLength);
  v1::StepRequest request;
  for (const v1::SessionHandle& handle : MustCreateMany(server, 2)) {
    *request.add_steps() = MakeStep(prompt, handle, 0, kLength);
  }
  for (const bool is_replay : {false, true}) {
    v1::StepResponse response;
    const auto context = NewContext();
    ASSERT_TRUE(server.sessions().Step(context.get(), request, &response).ok());
    for (const v1::SessionStepResult& result : response.results()) {
      EXPECT_EQ(result.is_replay(), is_replay);
      EXPECT_EQ(result.position(), kLength);
    }
  }
}

// A server of two workers whose second can be told to fail.
class FailingWorkerTest : public ::testing::Test {
 protected:
  void Start(bool memory_outlives) {
    faults_[0].memory_outlives = faults_[1].memory_outlives = memory_outlives;
    server_ = std::make_unique<TestServer>(
        WithTwoWorkers,
        [this](std::string_view,
               const BackendOptions&) -> absl::StatusOr<std::unique_ptr<AttentionBackend>> {
          // The first two are the workers'; later ones take the place of the one that failed.
          const int index = std::min(num_made_++, 1);
          return std::make_unique<FaultyBackend>(faults_[index]);
        });
    handles_ = MustCreateMany(*server_, 2);
    for (const v1::SessionHandle& handle : handles_) {
      MustStep(*server_, MakeStep(prompt_, handle, 0, kLength - 1));
    }
  }

  v1::SessionStepResult NextStep(int session) {
    return RunStep(*server_, MakeStep(prompt_, handles_[session], kLength - 1, kLength));
  }
  // The step's error when the whole call fails.
  grpc::Status FailNextStep(int session) {
    faults_[1].run_status = absl::InternalError("the device is broken");
    v1::StepRequest request;
    *request.add_steps() = MakeStep(prompt_, handles_[session], kLength - 1, kLength);
    v1::StepResponse response;
    const auto context = NewContext();
    const grpc::Status status = server_->sessions().Step(context.get(), request, &response);
    faults_[1].run_status = absl::OkStatus();
    return status;
  }

  const v1::AttendRequest prompt_ = MakePrompt(kLength);
  Faults faults_[2];
  int num_made_ = 0;
  std::unique_ptr<TestServer> server_;
  std::vector<v1::SessionHandle> handles_;
};

TEST_F(FailingWorkerTest, ItsSessionsGoOnWhenTheirMemoryIsKept) {
  Start(/*memory_outlives=*/true);
  EXPECT_THAT(FailNextStep(1), FailsWith(grpc::INTERNAL, "the device is broken"));
  for (const int session : {0, 1}) {
    const v1::SessionStepResult result = NextStep(session);
    EXPECT_FALSE(result.has_error()) << result.error().message();
    EXPECT_FALSE(result.is_replay()) << "what failed was taken back";
  }
  EXPECT_EQ(num_made_, 3);
  EXPECT_EQ(server_->Metric("attention_device_failures_total"), 1);
  EXPECT_EQ(server_->Metric("attention_sessions_lost_total"), 0);
}

// A cache has one writer, the worker of its device.
TEST_F(FailingWorkerTest, AForwardRunsWhereItsSessionIs) {
  Start(/*memory_outlives=*/true);
  const v1::LayerConfig config = SmallLayerConfig();
  v1::ForwardRequest request;
  request.set_layer_id(MustCreateLayer(*server_, MakeLayer(config, 1)));
  *request.mutable_x() = RandomTensor(v1::DTYPE_FLOAT32, {1, config.model_dim()}, 3);
  v1::LayerSession* session = request.add_sessions();
  const auto forward = [&](const v1::SessionHandle& handle, std::int64_t position) {
    *session->mutable_handle() = handle;
    session->set_expected_position(position);
    v1::ForwardResponse response;
    return Forward(*server_, request, &response);
  };
  // Each goes to the worker with the most room, so they are on two.
  std::vector<v1::SessionHandle> handles;
  for (int i = 0; i < 2; ++i) {
    handles.push_back(MustCreateSessionFor(*server_, config));
    ASSERT_TRUE(forward(handles.back(), 0).ok());
  }
  faults_[1].run_status = absl::InternalError("the device is broken");
  const grpc::Status outcomes[] = {forward(handles[0], 1), forward(handles[1], 1)};
  faults_[1].run_status = absl::OkStatus();
  EXPECT_NE(outcomes[0].ok(), outcomes[1].ok())
      << outcomes[0].error_message() << " and " << outcomes[1].error_message();
}

TEST_F(FailingWorkerTest, ItsSessionsAreLostByNameWithTheirMemory) {
  Start(/*memory_outlives=*/false);
  EXPECT_THAT(FailNextStep(1), FailsWith(grpc::INTERNAL, "the device is broken"));
  EXPECT_FALSE(NextStep(0).has_error()) << "the other worker's session";
  EXPECT_THAT(NextStep(1).error(), FailsBecause(grpc::NOT_FOUND, "SESSION_LOST"));
  v1::GetSessionRequest request;
  *request.mutable_handle() = handles_[1];
  v1::GetSessionResponse response;
  const auto context = NewContext();
  EXPECT_THAT(server_->sessions().GetSession(context.get(), request, &response),
              FailsBecause(grpc::NOT_FOUND, "SESSION_LOST"));
  EXPECT_EQ(server_->Metric("attention_sessions_lost_total"), 1);
  ExpectServes(*server_);
}

TEST(LostServerTest, WithoutADeviceItIsNotReadyAndSaysThatItShouldEnd) {
  Faults faults;
  server::ServerConfig config = TestConfig();
  config.workers = 1;
  config.device_recovery_timeout = absl::Seconds(1);
  const auto app = server::ServerApp::Start(
      config,
      [&faults](std::string_view,
                const BackendOptions&) -> absl::StatusOr<std::unique_ptr<AttentionBackend>> {
        if (!faults.make_status.ok()) return faults.make_status;
        return std::make_unique<FaultyBackend>(faults);
      });
  ASSERT_TRUE(app.ok()) << app.status();
  ServerClient client((*app)->addresses()[0], (*app)->admin_address());
  EXPECT_EQ(client.Get("/readyz").status, 200);
  faults.make_status = absl::UnavailableError("the driver does not give it back");
  faults.run_status = absl::InternalError("the context is lost");
  v1::AttendResponse response;
  EXPECT_THAT(Attend(client, MakePrompt(kLength), &response),
              FailsWith(grpc::INTERNAL, "the context is lost"));
  EXPECT_EQ(client.Get("/readyz").status, 503);
  EXPECT_TRUE(WaitUntil([&] { return (*app)->is_beyond_help(); }));
}

}  // namespace
}  // namespace attention::testing
