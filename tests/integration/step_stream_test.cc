// StepStream: steps without waiting for one another's answers.
#include <map>

#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

using Stream = grpc::ClientReaderWriter<v1::StepStreamRequest, v1::StepStreamResponse>;

class StepStreamTest : public ServiceFixture {
 protected:
  void Open(TestServer& server) {
    context_ = NewContext();
    stream_ = server.sessions().StepStream(context_.get());
  }

  void Send(std::uint64_t id, const v1::SessionStep& step) {
    v1::StepStreamRequest request;
    request.set_request_id(id);
    *request.mutable_request()->add_steps() = step;
    EXPECT_TRUE(stream_->Write(request));
  }

  // Creates a session on the stream, whose answer must be the next.
  v1::Session Create(const std::string& name = "") {
    v1::StepStreamRequest request;
    request.set_request_id(1000);
    *request.mutable_create_session() = MakeCreateRequest({});
    request.mutable_create_session()->set_name(name);
    EXPECT_TRUE(stream_->Write(request));
    v1::StepStreamResponse answer;
    EXPECT_TRUE(stream_->Read(&answer));
    EXPECT_EQ(answer.request_id(), 1000u);
    EXPECT_TRUE(answer.has_created_session()) << answer.ShortDebugString();
    return answer.created_session().session();
  }

  static grpc::Status Get(const v1::SessionHandle& handle) {
    v1::GetSessionRequest request;
    *request.mutable_handle() = handle;
    v1::GetSessionResponse response;
    return shared_server().sessions().GetSession(NewContext().get(), request, &response);
  }

  // Half-closes and reads to the end, which must be OK; answers by id.
  std::map<std::uint64_t, v1::StepStreamResponse> ReadAll() {
    EXPECT_TRUE(stream_->WritesDone());
    std::map<std::uint64_t, v1::StepStreamResponse> answers;
    v1::StepStreamResponse answer;
    while (stream_->Read(&answer)) {
      EXPECT_TRUE(answers.emplace(answer.request_id(), answer).second)
          << "a second answer to " << answer.request_id();
    }
    const grpc::Status status = stream_->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return answers;
  }

  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<Stream> stream_;
};

TEST_F(StepStreamTest, TokensOfOneSessionPipelinedAreAppliedInTheOrderSent) {
  constexpr std::int64_t kLength = 60;
  const v1::AttendRequest prompt = MakePrompt(kLength, v1::DTYPE_BFLOAT16);
  const SessionSpec spec{.kv_dtype = v1::DTYPE_BFLOAT16};
  const v1::SessionHandle handle = MustCreate(shared_server(), spec).handle();
  Open(shared_server());
  for (std::int64_t i = 0; i < kLength; ++i) {
    Send(static_cast<std::uint64_t>(i), MakeStep(prompt, handle, i, i + 1));
  }
  const auto answers = ReadAll();
  ASSERT_EQ(answers.size(), 60u);
  v1::AttendResponse all;
  for (const auto& [id, answer] : answers) {
    const v1::SessionStepResult& result = answer.response().results(0);
    ASSERT_FALSE(result.has_error()) << result.error().message();
    EXPECT_EQ(result.position(), static_cast<std::int64_t>(id) + 1);
    AppendRows(result.output(), all.mutable_output());
    AppendRows(result.lse(), all.mutable_lse());
  }
  EXPECT_EQ(FindMismatch(prompt, all), "");
  const v1::AttendResponse waited =
      Feed(shared_server(), prompt, MustCreate(shared_server(), spec).handle(), 1);
  EXPECT_TRUE(SameAnswer(all, waited));
}

TEST_F(StepStreamTest, ManySessionsShareAStream) {
  constexpr std::uint64_t kSessions = 16;
  constexpr std::int64_t kTokens = 8;
  std::vector<v1::AttendRequest> prompts;
  std::vector<v1::SessionHandle> handles;
  for (unsigned i = 0; i < kSessions; ++i) {
    prompts.push_back(MakePrompt(kTokens, v1::DTYPE_FLOAT32, 200 + i));
    handles.push_back(MustCreate(shared_server(), {.num_layers = 2}).handle());
  }
  Open(shared_server());
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (std::uint64_t i = 0; i < kSessions; ++i) {
      for (const int layer : {0, 1}) {
        Send((static_cast<std::uint64_t>(token) * kSessions + i) * 2 +
                 static_cast<std::uint64_t>(layer),
             MakeStep(prompts[i], handles[i], token, token + 1, layer));
      }
    }
  }
  const auto answers = ReadAll();
  ASSERT_EQ(answers.size(), kSessions * kTokens * 2);
  std::vector<v1::AttendResponse> all(kSessions * 2);
  for (const auto& [id, answer] : answers) {  // by id, which is by token
    const v1::SessionStepResult& result = answer.response().results(0);
    v1::AttendResponse& rows = all[id % (kSessions * 2)];
    AppendRows(result.output(), rows.mutable_output());
    AppendRows(result.lse(), rows.mutable_lse());
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(FindMismatch(prompts[i / 2], all[i]), "") << "session " << i / 2;
  }
}

TEST_F(StepStreamTest, AFailedStepAndARefusedRequestLeaveTheStreamOpen) {
  const v1::AttendRequest prompt = MakePrompt(20);
  const v1::SessionHandle handle = MustCreate(shared_server()).handle();
  Open(shared_server());
  Send(1, MakeStep(prompt, handle, 0, 10));
  Send(2, MakeStep(prompt, handle, 11, 20));  // a gap
  v1::StepStreamRequest empty;
  empty.set_request_id(3);
  EXPECT_TRUE(stream_->Write(empty));
  Send(4, MakeStep(prompt, handle, 10, 20));
  const auto answers = ReadAll();
  ASSERT_EQ(answers.size(), 4u);
  EXPECT_FALSE(answers.at(1).response().results(0).has_error());
  const v1::StreamError& gap = answers.at(2).response().results(0).error();
  EXPECT_THAT(gap, FailsBecause(grpc::FAILED_PRECONDITION, "POSITION_MISMATCH"));
  EXPECT_EQ(gap.metadata().at("actual_position"), "10");
  EXPECT_THAT(answers.at(3).error(), FailsWith(grpc::INVALID_ARGUMENT, "steps has 0 entries"));
  EXPECT_EQ(answers.at(4).response().results(0).position(), 20);
}

TEST_F(StepStreamTest, ASessionCreatedOnItEndsWithIt) {
  const v1::AttendRequest prompt = MakePrompt(20);
  Open(shared_server());
  const v1::SessionHandle handle = Create().handle();
  Send(1, MakeStep(prompt, handle, 0, 10));
  EXPECT_EQ(MustStep(shared_server(), MakeStep(prompt, MustCreate(shared_server()).handle(), 0, 10))
                .position(),
            10);
  EXPECT_EQ(ReadAll().at(1).response().results(0).position(), 10);
  EXPECT_TRUE(WaitUntil([&] { return !Get(handle).ok(); }));
  EXPECT_THAT(Get(handle), FailsBecause(grpc::NOT_FOUND, "SESSION_NOT_FOUND"));
  EXPECT_THAT(Get(handle), FailsWith(grpc::NOT_FOUND, "ended with the stream"));
}

TEST_F(StepStreamTest, OtherCallsMayUseASessionUntilItsStreamIsCancelled) {
  const v1::AttendRequest prompt = MakePrompt(20);
  Open(shared_server());
  const v1::SessionHandle handle = Create().handle();
  EXPECT_EQ(MustStep(shared_server(), MakeStep(prompt, handle, 0, 10)).position(), 10);
  context_->TryCancel();
  EXPECT_TRUE(WaitUntil([&] { return !Get(handle).ok(); }));
  EXPECT_THAT(RunStep(shared_server(), MakeStep(prompt, handle, 10, 20)).error(),
              FailsBecause(grpc::NOT_FOUND, "SESSION_NOT_FOUND"));
  EXPECT_FALSE(stream_->Finish().ok());
}

TEST_F(StepStreamTest, ANamedSessionEndsWithTheStreamThatAskedForItLast) {
  Open(shared_server());
  const v1::SessionHandle handle = Create("handed over").handle();
  const auto first_context = std::move(context_);
  const auto first_stream = std::move(stream_);
  Open(shared_server());
  const v1::SessionHandle bystander = Create().handle();
  EXPECT_EQ(Create("handed over").handle().session_id(), handle.session_id());
  first_context->TryCancel();
  EXPECT_FALSE(first_stream->Finish().ok());
  EXPECT_TRUE(Get(handle).ok());
  EXPECT_TRUE(ReadAll().empty());
  EXPECT_TRUE(WaitUntil([&] { return !Get(handle).ok() && !Get(bystander).ok(); }));
}

TEST_F(StepStreamTest, ARefusedCreationLeavesTheStreamOpen) {
  Open(shared_server());
  v1::StepStreamRequest request;
  request.set_request_id(7);
  request.mutable_create_session();
  EXPECT_TRUE(stream_->Write(request));
  v1::StepStreamResponse answer;
  ASSERT_TRUE(stream_->Read(&answer));
  EXPECT_EQ(answer.request_id(), 7u);
  EXPECT_THAT(answer.error(), FailsWith(grpc::INVALID_ARGUMENT, "geometry is missing"));
  Create();
  EXPECT_TRUE(ReadAll().empty());
}

TEST_F(StepStreamTest, ADrainEndsStreamsAndTheirSessions) {
  TestServer own;
  Open(own);
  Create();
  EXPECT_EQ(own.Metric("attention_sessions"), 1);
  own.DrainAndStop();
  EXPECT_EQ(own.Metric("attention_sessions"), 0);
  v1::StepStreamResponse none;
  EXPECT_FALSE(stream_->Read(&none));
  EXPECT_THAT(stream_->Finish(), FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
}

TEST_F(StepStreamTest, TheSdksStreamDrivesASession) {
  constexpr std::int64_t kLength = 20;
  const v1::AttendRequest prompt = MakePrompt(kLength);
  const auto client = shared_server().NewClient();
  client::SessionOptions options;
  options.geometry = {.num_layers = 1, .num_kv_heads = 2, .head_dim_qk = 32, .head_dim_v = 32};
  auto session = client->CreateSession(options);
  ASSERT_TRUE(session.ok()) << session.status();
  auto stream = client->OpenStepStream();
  ASSERT_TRUE(stream.ok()) << stream.status();
  std::vector<std::future<absl::StatusOr<client::StepResult>>> results;
  for (std::int64_t i = 0; i < kLength; ++i) {
    const v1::Tensor q = Rows(prompt.q(), i, i + 1);
    const v1::Tensor k = Rows(prompt.k(), i, i + 1);
    const v1::Tensor v = Rows(prompt.v(), i, i + 1);
    const auto view = [](const v1::Tensor& tensor) {
      return client::TensorView(tensor.data().data(), client::DType::kFloat32, ShapeOf(tensor));
    };
    client::LayerStep step{.q = view(q), .k = view(k), .v = view(v)};
    step.config.is_causal = true;
    step.returns.lse = true;
    const auto made = session->MakeStep(step);
    ASSERT_TRUE(made.ok()) << made.status();
    session->Advance(*made);
    results.push_back((*stream)->StepFuture({{*made}}));
  }
  EXPECT_TRUE((*stream)->Finish().ok());
  v1::AttendResponse all;
  for (auto& future : results) {
    const auto result = future.get();
    ASSERT_TRUE(result.ok()) << result.status();
    const client::SessionStepResult& row = result->results[0];
    ASSERT_TRUE(row.status.ok()) << row.status;
    AppendRows(MakeTensor(v1::DTYPE_FLOAT32, row.output.shape(), row.output.floats()),
               all.mutable_output());
    AppendRows(MakeTensor(v1::DTYPE_FLOAT32, row.lse.shape(), row.lse.floats()), all.mutable_lse());
  }
  EXPECT_EQ(FindMismatch(prompt, all), "");
}

}  // namespace
}  // namespace attention::testing
