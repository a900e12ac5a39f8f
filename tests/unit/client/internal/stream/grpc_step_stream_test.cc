#include "client/internal/stream/grpc_step_stream.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "attention/client/errors.h"
#include "tests/unit/client/fake_server.h"

namespace attention::client {
namespace {

using ServerStream = grpc::ServerReaderWriter<v1::StepStreamResponse, v1::StepStreamRequest>;

// Tells requests apart: the layer comes back as the position.
StepRequest Numbered(int number) { return {.steps = {{.layer = number}}}; }

v1::StepStreamResponse AnswerTo(const v1::StepStreamRequest& request) {
  v1::StepStreamResponse response;
  response.set_request_id(request.request_id());
  for (const auto& step : request.request().steps()) {
    response.mutable_response()->add_results()->set_position(step.layer());
  }
  return response;
}

grpc::Status Echo(grpc::ServerContext*, ServerStream* stream) {
  v1::StepStreamRequest request;
  while (stream->Read(&request)) stream->Write(AnswerTo(request));
  return grpc::Status::OK;
}

class GrpcStepStreamTest : public testing::Test {
 protected:
  std::unique_ptr<StepStream> Open(const StepStreamOptions& options = {}) {
    auto stream = client_->OpenStepStream(options);
    return stream.ok() ? *std::move(stream) : nullptr;
  }

  FakeServer server_;
  std::shared_ptr<Client> client_ = server_.Connect();
};

TEST_F(GrpcStepStreamTest, AnswersReachTheirRequests) {
  server_.on_step_stream = Echo;
  const auto stream = Open();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(stream->Step(Numbered(i))->results[0].position, i);
  EXPECT_TRUE(stream->status().ok());
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GrpcStepStreamTest, RequestsArePipelinedInOrderAndAnsweredInAnyOrder) {
  std::vector<int> arrived;
  server_.on_step_stream = [&](auto*, ServerStream* stream) {
    std::vector<v1::StepStreamRequest> requests(20);
    for (auto& request : requests) {
      stream->Read(&request);
      arrived.push_back(request.request().steps(0).layer());
    }
    for (auto request = requests.rbegin(); request != requests.rend(); ++request) {
      stream->Write(AnswerTo(*request));
    }
    return Echo(nullptr, stream);
  };
  const auto stream = Open();
  std::vector<std::int64_t> completed, expected_arrival;
  absl::BlockingCounter pending(20);
  for (int i = 0; i < 20; ++i) {
    expected_arrival.push_back(i);
    stream->StepAsync(Numbered(i), [&](absl::StatusOr<StepResult> result) {
      completed.push_back(result->results[0].position);  // callbacks do not overlap
      pending.DecrementCount();
    });
  }
  pending.Wait();
  EXPECT_THAT(arrived, testing::ElementsAreArray(expected_arrival));
  EXPECT_THAT(completed,
              testing::ElementsAreArray(expected_arrival.rbegin(), expected_arrival.rend()));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GrpcStepStreamTest, ARefusedRequestLeavesTheOthersAlone) {
  server_.on_step_stream = [](auto*, ServerStream* stream) {
    v1::StepStreamRequest request;
    while (stream->Read(&request)) {
      v1::StepStreamResponse response = AnswerTo(request);
      if (request.request().steps(0).layer() == 1) {
        response.mutable_error()->set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
        response.mutable_error()->set_reason("QUEUE_FULL");
        response.mutable_error()->mutable_retry_delay()->set_seconds(2);
      }
      stream->Write(response);
    }
    return grpc::Status::OK;
  };
  const auto stream = Open();
  const absl::Status status = stream->Step(Numbered(1)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(ErrorReason(status), std::string(kQueueFull));
  EXPECT_EQ(RetryDelay(status), absl::Seconds(2));
  EXPECT_TRUE(stream->Step(Numbered(2)).ok());
}

TEST_F(GrpcStepStreamTest, ABrokenStreamFailsWhatIsOutstandingOnceWithItsStatus) {
  server_.on_step_stream = [](auto*, ServerStream* stream) {
    v1::StepStreamRequest request;
    for (int i = 0; i < 3; ++i) stream->Read(&request);
    return ServerError(grpc::StatusCode::UNAVAILABLE, "bye", "DRAINING");
  };
  const auto stream = Open();
  std::atomic<int> num_calls = 0;
  absl::BlockingCounter pending(3);
  for (int i = 0; i < 3; ++i) {
    stream->StepAsync(Numbered(i), [&](absl::StatusOr<StepResult> result) {
      EXPECT_EQ(result.status().message(), "bye");
      EXPECT_EQ(ErrorReason(result.status()), std::string(kDraining));
      ++num_calls;
      pending.DecrementCount();
    });
  }
  pending.Wait();
  EXPECT_TRUE(absl::IsUnavailable(stream->Finish()));
  EXPECT_EQ(num_calls, 3);
  EXPECT_EQ(stream->Step(Numbered(4)).status(), stream->status());
}

TEST_F(GrpcStepStreamTest, AnEndWithoutAnswersIsUnavailable) {
  server_.on_step_stream = [](auto*, ServerStream* stream) {
    v1::StepStreamRequest request;
    stream->Read(&request);
    return grpc::Status::OK;
  };
  const auto stream = Open();
  EXPECT_TRUE(absl::IsUnavailable(stream->Step(Numbered(0)).status()));
  EXPECT_TRUE(absl::IsUnavailable(stream->Step(Numbered(1)).status()));
}

TEST_F(GrpcStepStreamTest, AnAnswerToNoRequestBreaksTheStream) {
  server_.on_step_stream = [](auto*, ServerStream* stream) {
    v1::StepStreamRequest request;
    stream->Read(&request);
    request.set_request_id(request.request_id() + 1);
    stream->Write(AnswerTo(request));
    return Echo(nullptr, stream);
  };
  EXPECT_TRUE(absl::IsInternal(Open()->Step(Numbered(0)).status()));
}

TEST_F(GrpcStepStreamTest, FinishWaitsForEveryAnswer) {
  absl::Notification release;
  server_.on_step_stream = [&](auto*, ServerStream* stream) {
    v1::StepStreamRequest first, second;
    stream->Read(&first);
    stream->Read(&second);
    release.WaitForNotification();
    stream->Write(AnswerTo(second));
    stream->Write(AnswerTo(first));
    return Echo(nullptr, stream);
  };
  const auto stream = Open();
  auto first = stream->StepFuture(Numbered(1)), second = stream->StepFuture(Numbered(2));
  std::thread finisher([&] { EXPECT_TRUE(stream->Finish().ok()); });
  release.Notify();
  finisher.join();
  EXPECT_EQ(first.get()->results[0].position, 1);
  EXPECT_EQ(second.get()->results[0].position, 2);
  EXPECT_TRUE(absl::IsFailedPrecondition(stream->Step(Numbered(3)).status()));
}

TEST_F(GrpcStepStreamTest, NoMoreRequestsOnceFinishing) {
  absl::Notification release, half_closed;
  server_.on_step_stream = [&](auto*, ServerStream* stream) {
    v1::StepStreamRequest request, none;
    stream->Read(&request);
    stream->Read(&none);  // returns when the client has half-closed
    half_closed.Notify();
    release.WaitForNotification();
    stream->Write(AnswerTo(request));
    return grpc::Status::OK;
  };
  const auto stream = Open();
  auto answer = stream->StepFuture(Numbered(1));
  std::thread finisher([&] { EXPECT_TRUE(stream->Finish().ok()); });
  half_closed.WaitForNotification();
  EXPECT_TRUE(absl::IsFailedPrecondition(stream->Step(Numbered(2)).status()));
  release.Notify();
  finisher.join();
  EXPECT_TRUE(answer.get().ok());
}

TEST_F(GrpcStepStreamTest, OutstandingRequestsAreBounded) {
  absl::Notification release;
  server_.on_step_stream = [&](auto*, ServerStream* stream) {
    release.WaitForNotification();
    return Echo(nullptr, stream);
  };
  const auto stream = Open({.max_outstanding = 2});
  auto first = stream->StepFuture(Numbered(1)), second = stream->StepFuture(Numbered(2));
  EXPECT_TRUE(absl::IsResourceExhausted(stream->Step(Numbered(3)).status()));
  release.Notify();
  EXPECT_TRUE(first.get().ok() && second.get().ok());
  EXPECT_TRUE(stream->Step(Numbered(4)).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(client_->OpenStepStream({.max_outstanding = 0}).status()));
}

TEST_F(GrpcStepStreamTest, DestructionCancelsWhatIsOutstanding) {
  server_.on_step_stream = [](auto* context, ServerStream* stream) {
    v1::StepStreamRequest request;
    while (stream->Read(&request)) continue;  // ends when the client cancels
    EXPECT_TRUE(context->IsCancelled());
    return grpc::Status::OK;
  };
  auto stream = Open();
  auto first = stream->StepFuture(Numbered(1)), second = stream->StepFuture(Numbered(2));
  stream.reset();
  EXPECT_TRUE(absl::IsCancelled(first.get().status()));
  EXPECT_TRUE(absl::IsCancelled(second.get().status()));
}

TEST_F(GrpcStepStreamTest, CancelAndTokenBreakTheStream) {
  server_.on_step_stream = [](auto*, ServerStream* stream) {
    v1::StepStreamRequest request;
    while (stream->Read(&request)) continue;
    return grpc::Status::OK;
  };
  std::stop_source source;
  const auto by_method = Open();
  const auto by_token = Open({.call = {.cancellation = source.get_token()}});
  auto first = by_method->StepFuture(Numbered(1)), second = by_token->StepFuture(Numbered(1));
  by_method->Cancel();
  source.request_stop();
  EXPECT_TRUE(absl::IsCancelled(first.get().status()));
  EXPECT_TRUE(absl::IsCancelled(second.get().status()));
  EXPECT_TRUE(absl::IsCancelled(by_method->Finish()));
}

TEST_F(GrpcStepStreamTest, AServerThatStopsBreaksTheStream) {
  server_.on_step_stream = Echo;
  const auto stream = Open();
  ASSERT_TRUE(stream->Step(Numbered(1)).ok());
  server_.Stop();
  EXPECT_FALSE(stream->Step(Numbered(2)).ok());
  EXPECT_FALSE(stream->Finish().ok());
}

TEST_F(GrpcStepStreamTest, CallbacksMayStepAgain) {
  server_.on_step_stream = Echo;
  const auto stream = Open();
  absl::Notification done;
  std::function<void(int)> step = [&](int left) {
    stream->StepAsync(Numbered(left), [&, left](absl::StatusOr<StepResult> result) {
      EXPECT_TRUE(result.ok());
      if (left > 0) return step(left - 1);
      done.Notify();
    });
  };
  step(100);
  done.WaitForNotification();
}

TEST_F(GrpcStepStreamTest, ThreadsShareAStream) {
  server_.on_step_stream = Echo;
  const auto stream = Open();
  std::atomic<int> num_good = 0;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 100; ++i) {
        const int number = thread * 100 + i;
        const auto result = stream->Step(Numbered(number));
        if (result.ok() && result->results[0].position == number) ++num_good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_good, 800);
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(GrpcStepStreamTest, SessionsAreCreatedBetweenSteps) {
  server_.on_step_stream = [](auto*, ServerStream* stream) {
    v1::StepStreamRequest request;
    while (stream->Read(&request)) {
      v1::StepStreamResponse response = AnswerTo(request);
      if (request.has_create_session() && request.create_session().name() == "bad") {
        response.mutable_error()->set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
        response.mutable_error()->set_reason("QUOTA_EXCEEDED");
      } else if (request.has_create_session()) {
        v1::Session* session = response.mutable_created_session()->mutable_session();
        *session->mutable_geometry() = request.create_session().geometry();
        session->mutable_handle()->set_session_id("new");
      }
      stream->Write(response);
    }
    return grpc::Status::OK;
  };
  const auto stream = Open();
  EXPECT_TRUE(stream->Step(Numbered(1)).ok());
  const auto info = stream->CreateSession({.geometry = {.num_layers = 3}});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->handle.session_id, "new");
  EXPECT_EQ(info->geometry.num_layers, 3);
  EXPECT_EQ(ErrorReason(stream->CreateSession({.name = "bad"}).status()),
            std::string(kQuotaExceeded));
  EXPECT_TRUE(stream->Step(Numbered(2)).ok());
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(stream->CreateSession({}).status()));
}

TEST_F(GrpcStepStreamTest, ABrokenStreamFailsTheSessionsThatAreBeingCreated) {
  server_.on_step_stream = [](auto*, ServerStream* stream) {
    v1::StepStreamRequest request;
    stream->Read(&request);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "bye");
  };
  EXPECT_EQ(Open()->CreateSession({}).status(), absl::UnavailableError("bye"));
}

TEST_F(GrpcStepStreamTest, MetadataReachesTheServerAndTheDefaultTimeoutDoesNot) {
  std::string tenant, id;
  bool has_deadline = true;
  server_.on_step_stream = [&](grpc::ServerContext* context, ServerStream* stream) {
    tenant = MetadataValue(*context, "attention-tenant");
    id = MetadataValue(*context, "x-request-id");
    has_deadline = context->deadline() < std::chrono::system_clock::now() + std::chrono::hours(1);
    return Echo(nullptr, stream);
  };
  const auto client = server_.Connect({.tenant = "acme"});
  const auto stream = client->OpenStepStream({.call = {.request_id = "mine"}});
  ASSERT_TRUE(stream.ok()) << stream.status();
  EXPECT_TRUE((*stream)->Finish().ok());
  EXPECT_EQ(tenant, "acme");
  EXPECT_EQ(id, "mine");
  EXPECT_FALSE(has_deadline);
}

TEST_F(GrpcStepStreamTest, UnreadableTensorsFailTheirRequestOnly) {
  server_.on_step_stream = Echo;
  const auto stream = Open();
  const StepRequest bad = {.steps = {{.q = TensorView(nullptr, DType::kFloat32, {1})}}};
  EXPECT_TRUE(absl::IsInvalidArgument(stream->Step(bad).status()));
  EXPECT_TRUE(stream->Step(Numbered(1)).ok());
}

}  // namespace
}  // namespace attention::client
