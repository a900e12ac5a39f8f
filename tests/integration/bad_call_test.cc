// Calls that go wrong as calls: too large, too late, given up, garbled, one too many, or in the
// middle of a shutdown.
#include <thread>

#include "tests/support/raw_call.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

constexpr char kDroppedByDeadline[] = "attention_dropped_requests_total{reason=\"deadline\"}";
constexpr char kDroppedByCancel[] = "attention_dropped_requests_total{reason=\"cancelled\"}";

class BadCallTest : public ServiceFixture {};

bool WaitForQueued(TestServer& server, double count) {
  return WaitUntil([&] { return server.Metric("attention_queued_requests") == count; });
}

// A call that runs in a thread of its own and can be given up.
class AsyncAttend {
 public:
  explicit AsyncAttend(TestServer& server, absl::Duration timeout = kCallTimeout)
      : AsyncAttend(server, MakeAttendRequest({}), timeout) {}
  AsyncAttend(TestServer& server, v1::AttendRequest request, absl::Duration timeout = kCallTimeout)
      : context_(NewContext("", timeout)), request_(std::move(request)) {
    call_ = std::async(std::launch::async, [this, &server] {
      return server.attention().Attend(context_.get(), request_, &response_);
    });
  }
  void Cancel() { context_->TryCancel(); }
  grpc::Status Finish() { return call_.get(); }

 private:
  std::unique_ptr<grpc::ClientContext> context_;
  v1::AttendRequest request_;
  v1::AttendResponse response_;
  std::future<grpc::Status> call_;
};

TEST_F(BadCallTest, AMessageOverTheLimitIsRefused) {
  TestServer own([](server::ServerConfig& config) { config.max_message_bytes = 1 << 20; });
  const v1::AttendRequest large =
      MakeAttendRequest({.head_dim_qk = 1, .head_dim_v = 1, .q_lens = {70'000}, .kv_lens = {1}});
  v1::AttendResponse response;
  EXPECT_THAT(Attend(own, large, &response), FailsWith(grpc::RESOURCE_EXHAUSTED, "larger than"));
  ExpectServes(own);

  const auto context = NewContext();
  const auto stream = own.attention().AttendStream(context.get());
  v1::AttendStreamRequest request;
  *request.mutable_request() = large;
  stream->Write(request);
  stream->WritesDone();
  v1::AttendStreamResponse answer;
  while (stream->Read(&answer)) {
  }
  EXPECT_THAT(stream->Finish(), FailsWith(grpc::RESOURCE_EXHAUSTED, "larger than"));
  ExpectServes(own);
}

TEST_F(BadCallTest, AnAnswerOverTheLimitIsRefusedBeforeItIsComputed) {
  TestServer own([](server::ServerConfig& config) { config.max_message_bytes = 1 << 20; });
  v1::AttendResponse response;
  EXPECT_THAT(Attend(own,
                     MakeAttendRequest(
                         {.head_dim_qk = 1, .head_dim_v = 256, .q_lens = {2000}, .kv_lens = {1}}),
                     &response),
              FailsWith(grpc::INVALID_ARGUMENT, "output would have shape [2000, 4, 256]"));
  ExpectServes(own);
}

TEST_F(BadCallTest, ADeadlineThatHasPassedIsToldAsSuch) {
  v1::AttendResponse response;
  const auto context = NewContext("", absl::Seconds(-1));
  EXPECT_THAT(shared_server().attention().Attend(context.get(), MakeAttendRequest({}), &response),
              FailsWith(grpc::DEADLINE_EXCEEDED, ""));
  ExpectServes(shared_server());
}

TEST_F(BadCallTest, ARequestWhoseDeadlinePassesInTheQueueIsNotComputed) {
  TestServer own(SlowBackend());
  BusyWorker busy(own);
  const double batches = own.Metric("attention_batch_requests_count");
  AsyncAttend late(own, absl::Milliseconds(50));
  EXPECT_THAT(late.Finish(), FailsWith(grpc::DEADLINE_EXCEEDED, ""));
  busy.Finish();
  EXPECT_TRUE(WaitForQueued(own, 0));
  // The client hangs up when its deadline passes, so the server may see either first.
  EXPECT_TRUE(WaitUntil(
      [&] { return own.Metric(kDroppedByDeadline) + own.Metric(kDroppedByCancel) == 1; }));
  EXPECT_EQ(own.Metric("attention_batch_requests_count"), batches);
  ExpectServes(own);
}

TEST_F(BadCallTest, WhatAClientGaveUpIsDroppedAndCounted) {
  TestServer own(SlowBackend());
  BusyWorker busy(own);
  const double batches = own.Metric("attention_batch_requests_count");
  AsyncAttend abandoned(own);
  ASSERT_TRUE(WaitForQueued(own, 1));
  abandoned.Cancel();
  EXPECT_THAT(abandoned.Finish(), FailsWith(grpc::CANCELLED, ""));
  busy.Finish();
  EXPECT_TRUE(WaitUntil([&] { return own.Metric(kDroppedByCancel) == 1; }));
  EXPECT_EQ(own.Metric("attention_batch_requests_count"), batches);
  ExpectServes(own);
}

TEST_F(BadCallTest, AStepThatWasGivenUpInTheQueueIsNotApplied) {
  TestServer own(SlowBackend());
  const v1::AttendRequest prompt = MakePrompt(4);
  const v1::SessionHandle handle = MustCreate(own).handle();
  BusyWorker busy(own);
  const auto context = NewContext();
  std::future<grpc::Status> call = std::async(std::launch::async, [&] {
    v1::StepRequest request;
    *request.add_steps() = MakeStep(prompt, handle, 0, 4);
    v1::StepResponse response;
    return own.sessions().Step(context.get(), request, &response);
  });
  ASSERT_TRUE(WaitForQueued(own, 1));
  context->TryCancel();
  EXPECT_THAT(call.get(), FailsWith(grpc::CANCELLED, ""));
  busy.Finish();
  EXPECT_TRUE(WaitUntil([&] { return own.Metric(kDroppedByCancel) == 1; }));
  EXPECT_EQ(MustGet(own, handle).layer_lengths(0), 0);
  EXPECT_FALSE(MustStep(own, MakeStep(prompt, handle, 0, 4)).is_replay());
}

TEST_F(BadCallTest, AStreamWhoseClientHasGoneTakesItsQueuedRequestsAlong) {
  TestServer own(SlowBackend());
  BusyWorker busy(own);
  {
    const auto context = NewContext();
    const auto stream = own.attention().AttendStream(context.get());
    for (std::uint64_t id = 0; id < 5; ++id) {
      v1::AttendStreamRequest request;
      request.set_request_id(id);
      *request.mutable_request() = MakeAttendRequest({});
      ASSERT_TRUE(stream->Write(request));
    }
    ASSERT_TRUE(WaitForQueued(own, 5));
    context->TryCancel();
    EXPECT_THAT(stream->Finish(), FailsWith(grpc::CANCELLED, ""));
  }
  busy.Finish();
  EXPECT_TRUE(WaitUntil([&] { return own.Metric(kDroppedByCancel) == 5; }));
  ExpectServes(own);
}

TEST_F(BadCallTest, AFullQueueSaysWhenToComeBack) {
  TestServer own(SlowBackend([](server::ServerConfig& config) { config.max_queued_requests = 1; }));
  BusyWorker busy(own);
  AsyncAttend waiting(own);
  ASSERT_TRUE(WaitForQueued(own, 1));
  v1::AttendResponse response;
  const grpc::Status refused = Attend(own, MakeAttendRequest({}), &response);
  EXPECT_THAT(refused, FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUEUE_FULL"));
  EXPECT_THAT(refused.error_message(), ::testing::HasSubstr("the queue of 1 requests is full"));
  ASSERT_TRUE(DetailsOf(refused).retry_delay.has_value());
  EXPECT_GT(*DetailsOf(refused).retry_delay, absl::ZeroDuration());
  EXPECT_EQ(own.Metric("attention_rejected_queue_full_total"), 1);
  busy.Finish();
  EXPECT_TRUE(waiting.Finish().ok());
  ExpectServes(own);
}

TEST_F(BadCallTest, TheQueueIsBoundedInBytesToo) {
  TestServer own(
      SlowBackend([](server::ServerConfig& config) { config.max_queued_bytes = 12 << 20; }));
  BusyWorker busy(own);
  // A request of 7 MB with its results: the first one fits, another beside it does not.
  const auto rows = [](std::int64_t count) {
    return MakeAttendRequest({.num_q_heads = 1,
                              .num_kv_heads = 1,
                              .head_dim_qk = 256,
                              .head_dim_v = 256,
                              .q_lens = {count},
                              .kv_lens = {1}});
  };
  AsyncAttend waiting(own, rows(3500));
  ASSERT_TRUE(WaitForQueued(own, 1));
  v1::AttendResponse response;
  const grpc::Status refused = Attend(own, rows(3500), &response);
  EXPECT_THAT(refused, FailsBecause(grpc::RESOURCE_EXHAUSTED, "QUEUE_FULL"));
  EXPECT_TRUE(DetailsOf(refused).retry_delay.has_value());
  EXPECT_THAT(Attend(own, rows(13000), &response),
              FailsWith(grpc::INVALID_ARGUMENT, "(max-queued-bytes)"))
      << "it would not fit an empty queue either";
  busy.Finish();
  EXPECT_TRUE(waiting.Finish().ok());
  ExpectServes(own);
}

// They hold memory for each, though there is nothing to compute.
TEST_F(BadCallTest, EmptySequencesAndStepsCountInTheQueuesBytes) {
  TestServer own([](server::ServerConfig& config) { config.max_queued_bytes = 8 << 20; });
  v1::AttendRequest empty = MakeAttendRequest({.q_lens = {0}, .kv_lens = {0}});
  for (int i = 0; i < 16384; ++i) {
    empty.add_q_lens(0);
    empty.add_kv_lens(0);
  }
  v1::AttendResponse response;
  EXPECT_THAT(Attend(own, empty, &response), FailsWith(grpc::INVALID_ARGUMENT, "max-queued-bytes"));
  const v1::SessionHandle handle = MustCreate(own).handle();
  v1::StepRequest steps;
  for (int i = 0; i < 8192; ++i) *steps.add_steps() = MakeAppend(MakePrompt(1), handle, 0, 0);
  v1::StepResponse results;
  EXPECT_THAT(own.sessions().Step(NewContext().get(), steps, &results),
              FailsWith(grpc::INVALID_ARGUMENT, "max-queued-bytes"));
  ExpectServes(own);
}

TEST_F(BadCallTest, MetadataThatIsTooLongIsRefused) {
  for (const char* key : {"attention-tenant", "x-request-id"}) {
    SCOPED_TRACE(key);
    const auto context = NewContext();
    context->AddMetadata(key, std::string(129, 'x'));
    v1::AttendResponse response;
    const std::string message =
        std::string("metadata ") + key + " has 129 bytes, expected 1 to 128";
    EXPECT_THAT(shared_server().attention().Attend(context.get(), MakeAttendRequest({}), &response),
                FailsWith(grpc::INVALID_ARGUMENT, message));
    const auto stream_context = NewContext();
    stream_context->AddMetadata(key, std::string(129, 'x'));
    const auto stream = shared_server().attention().AttendStream(stream_context.get());
    v1::AttendStreamResponse answer;
    EXPECT_FALSE(stream->Read(&answer));
    EXPECT_THAT(stream->Finish(), FailsWith(grpc::INVALID_ARGUMENT, message));
  }
  v1::CreateSessionResponse response;
  EXPECT_THAT(shared_server().sessions().CreateSession(NewContext(std::string(129, 'x')).get(),
                                                       MakeCreateRequest({}), &response),
              FailsWith(grpc::INVALID_ARGUMENT, "metadata attention-tenant"));
  MustCreate(shared_server(), {}, std::string(128, 'x'));
  ExpectServes(shared_server());
}

// A cut message, a wrong wire type, a length that points behind the end, plain noise.
const std::vector<std::string>& Garbage() {
  static const std::vector<std::string> garbage = [] {
    const std::string good = MakeAttendRequest({}).SerializeAsString();
    return std::vector<std::string>{good.substr(0, good.size() / 2), std::string("\x0f\x01", 2),
                                    std::string("\x0a\xff\xff\xff\xff\x07", 6),
                                    std::string(1000, '\xff')};
  }();
  return garbage;
}

TEST_F(BadCallTest, BytesThatAreNoMessageAreRefused) {
  for (const std::string& bytes : Garbage()) {
    for (const char* method :
         {"/attention.v1.AttentionService/Attend", "/attention.v1.SessionService/CreateSession",
          "/attention.v1.SessionService/Step", "/attention.v1.LayerService/Forward",
          "/attention.v1.LayerService/GetLayer", "/attention.v1.ServerService/Explain"}) {
      SCOPED_TRACE(method);
      EXPECT_THAT(CallRaw(shared_server().channel(), method, bytes),
                  FailsWith(grpc::INVALID_ARGUMENT, "is malformed: "));
    }
  }
  ExpectServes(shared_server());
}

TEST_F(BadCallTest, ALengthBeyondTheMessageIsNamedWithItsField) {
  // q { data: 2^31 - 1 bytes } in a message of seven bytes.
  const std::string bytes("\x0a\x06\x1a\xff\xff\xff\xff\x07", 8);
  EXPECT_THAT(CallRaw(shared_server().channel(), "/attention.v1.AttentionService/Attend", bytes),
              FailsWith(grpc::INVALID_ARGUMENT,
                        "q.data is malformed: its length is 2147483647, expected at most the 0"));
}

TEST_F(BadCallTest, BytesThatAreNoMessageEndAStreamWithAnError) {
  v1::AttendStreamRequest good;
  good.set_request_id(7);
  *good.mutable_request() = MakeAttendRequest({});
  for (const std::string& bytes : Garbage()) {
    int answers = 0;
    const grpc::Status status =
        StreamRaw(shared_server().channel(), "/attention.v1.AttentionService/AttendStream",
                  {good.SerializeAsString(), bytes}, [&](const std::string&) { ++answers; });
    EXPECT_THAT(status, FailsWith(grpc::INVALID_ARGUMENT, "is malformed: "));
    EXPECT_EQ(answers, 1) << "what came before the bytes is answered";
  }
  ExpectServes(shared_server());
}

TEST_F(BadCallTest, FieldsFromTheFutureAreIgnored) {
  const std::string known = MakeAttendRequest({}).SerializeAsString();
  const std::string future = known + std::string("\x9a\x06\x02hi", 5);  // field 99: "hi"
  const grpc::Status status =
      CallRaw(shared_server().channel(), "/attention.v1.AttentionService/Attend", future);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(BadCallTest, UnknownMethodsAreUnimplemented) {
  EXPECT_THAT(CallRaw(shared_server().channel(), "/attention.v1.AttentionService/Divine", ""),
              FailsWith(grpc::UNIMPLEMENTED, ""));
  ExpectServes(shared_server());
}

// A server that is shutting down while its worker is busy.
class DrainTest : public ServiceFixture {
 protected:
  void BeginDrain() {
    busy_ = std::make_unique<BusyWorker>(server_);
    drain_ = std::thread([this] { server_.DrainAndStop(); });
    ASSERT_TRUE(WaitUntil([&] { return server_.Get("/readyz").status == 503; }));
  }
  void TearDown() override {
    if (drain_.joinable()) drain_.join();
  }

  TestServer server_{SlowBackend()};
  std::unique_ptr<BusyWorker> busy_;
  std::thread drain_;
};

TEST_F(DrainTest, NewCallsAreSentElsewhereAndTheOneInFlightFinishes) {
  const v1::SessionHandle handle = MustCreate(server_).handle();
  BeginDrain();
  v1::AttendResponse response;
  EXPECT_THAT(Attend(server_, MakeAttendRequest({}), &response),
              FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  v1::StepRequest request;
  *request.add_steps() = MakeStep(MakePrompt(3), handle, 0, 3);
  v1::StepResponse step_response;
  EXPECT_THAT(server_.sessions().Step(NewContext().get(), request, &step_response),
              FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  busy_->Finish();
}

TEST_F(DrainTest, NoSessionIsMadeThatWouldBeLostAtOnce) {
  BeginDrain();
  v1::CreateSessionResponse response;
  EXPECT_THAT(
      server_.sessions().CreateSession(NewContext().get(), MakeCreateRequest({}), &response),
      FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  busy_->Finish();
}

TEST_F(DrainTest, AnIdleStreamIsToldToGoElsewhere) {
  const auto context = NewContext();
  const auto stream = server_.sessions().StepStream(context.get());
  v1::StepStreamRequest request;
  ASSERT_TRUE(stream->Write(request));  // refused, but now the stream is known to be open
  v1::StepStreamResponse answer;
  ASSERT_TRUE(stream->Read(&answer));
  BeginDrain();
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_THAT(stream->Finish(), FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  busy_->Finish();
}

TEST_F(DrainTest, AStreamOpenedDuringTheDrainIsRefused) {
  BeginDrain();
  const auto context = NewContext();
  const auto stream = server_.attention().AttendStream(context.get());
  v1::AttendStreamRequest request;
  request.set_request_id(7);
  *request.mutable_request() = MakeAttendRequest({});
  stream->Write(request);
  stream->WritesDone();
  v1::AttendStreamResponse answer;
  if (stream->Read(&answer)) {
    EXPECT_THAT(answer.error(), FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  } else {
    EXPECT_THAT(stream->Finish(), FailsBecause(grpc::UNAVAILABLE, "DRAINING"));
  }
  busy_->Finish();
}

TEST_F(DrainTest, WeightsThatAreBeingStreamedComeToTheirEnd) {
  TestServer own;
  const auto context = NewContext();
  const auto stream = own.attention().AttendStream(context.get());
  v1::AttendStreamRequest request;
  *request.mutable_request() =
      MakeAttendRequest({.head_dim_qk = 4, .head_dim_v = 4, .q_lens = {2048}, .kv_lens = {2048}});
  request.mutable_request()->mutable_returns()->set_weights(true);
  ASSERT_TRUE(stream->Write(request));  // 64 MiB of weights in blocks of 1
  v1::AttendStreamResponse answer;
  ASSERT_TRUE(stream->Read(&answer));
  const std::jthread drain([&] { own.DrainAndStop(); });
  std::int64_t rows = 0;
  while (!answer.is_last() && stream->Read(&answer)) {
    EXPECT_TRUE(answer.has_weights()) << answer.error().message();
    if (!answer.has_weights()) break;
    rows += answer.weights().weights().shape(0);
  }
  EXPECT_TRUE(answer.is_last());
  EXPECT_EQ(rows, 2048);
}

}  // namespace
}  // namespace attention::testing
